// What a run's stream must be: chunks that the strictest client takes, in an order that leaves nothing open.

import assert from 'node:assert/strict';

import { sdk, VERSIONS } from './chat.mjs';

const schemas = VERSIONS.map((version) => {
  const { uiMessageChunkSchema } = sdk(version);
  return [version, typeof uiMessageChunkSchema === 'function' ? uiMessageChunkSchema() : uiMessageChunkSchema];
});

/** Every chunk is valid for every version. */
export async function assertValid(chunks) {
  for (const chunk of chunks) {
    for (const [version, schema] of schemas) {
      const result = await schema.validate(chunk);
      assert.ok(result.success, `ai ${version} refuses the chunk ${JSON.stringify(chunk)}`);
    }
  }
}

/** A run's whole stream: one `start`, everything that is opened is closed, one end. */
export function assertWellFormed(chunks) {
  const types = chunks.map((chunk) => chunk.type);
  const at = (index) => `chunk ${index + 1} of ${chunks.length} is ${JSON.stringify(chunks[index])}`;
  const must = (holds, index, rule) => assert.ok(holds, `${rule}: ${at(index)}, in ${types.join(' ')}`);
  const open = new Set();
  const tools = new Set();
  let isInStep = false;

  must(types[0] === 'start', 0, 'a stream begins with start');
  must(typeof chunks[0].messageId === 'string' && chunks[0].messageId !== '', 0, 'start names the message');
  must(types.at(-1) === 'finish', chunks.length - 1, 'a stream ends with finish');
  chunks.forEach(({ type, id, toolCallId }, index) => {
    const [kind, act] = type.split('-');
    if (type === 'start') must(index === 0, index, 'there is one start');
    if (type === 'finish') must(index === chunks.length - 1, index, 'nothing follows finish');
    if (type === 'error' || type === 'abort') must(index === chunks.length - 2, index, `only finish follows ${type}`);
    if (type === 'finish' || type === 'error' || type === 'abort' || type === 'finish-step') {
      must(open.size === 0, index, `${[...open]} is still open`);
    }
    if (type === 'start-step') {
      must(!isInStep, index, 'steps follow each other');
      isInStep = true;
    }
    if (type === 'finish-step') {
      must(isInStep, index, 'the step was not opened');
      isInStep = false;
    }
    if (type === 'finish') must(!isInStep, index, 'the step is still open');
    if (kind === 'text' || kind === 'reasoning') {
      const part = `${kind} ${id}`;
      must(open.has(part) !== (act === 'start'), index, `${part} is ${act === 'start' ? 'already' : 'not'} open`);
      if (act === 'start') open.add(part);
      if (act === 'end') open.delete(part);
    }
    if (type === 'tool-input-available') tools.add(toolCallId);
    else if (kind === 'tool') must(tools.has(toolCallId), index, `the tool call ${toolCallId} was not announced`);
  });
}

/** A stream as it was read: well-formed, valid, numbered without a gap, and over. */
export async function assertWholeRun(recording) {
  await recording.untilOver();
  assert.equal(recording.end, 'clean', 'the stream ends cleanly');
  const { chunks } = recording;
  assertWellFormed(chunks);
  await assertValid(chunks);
  assertNumbered(recording.events);
  assert.equal(recording.blocks.at(-1).data, '[DONE]', 'the last event is [DONE]');
}

/** The ids of the events count up by one. */
export function assertNumbered(events) {
  events.forEach(({ id }, index) => {
    assert.match(id ?? '', /^[1-9][0-9]*$/, `event ${index + 1} has no number in id: ${JSON.stringify(events[index])}`);
    if (index > 0) assert.equal(Number(id), Number(events[index - 1].id) + 1, `${id} follows ${events[index - 1].id}`);
  });
}

/**
 * The messages that a client holds are those that are stored. Left out of the comparison: the chunk's id on a reasoning
 * part, which ai 6.0.326 keeps and 6.0.0 does not; how a question was answered, which no chunk says and what is stored has.
 */
export function assertSameMessages(actual, expected, what) {
  assert.deepEqual(plain(actual), plain(expected), what);
}

function plain(messages) {
  const copy = JSON.parse(JSON.stringify(messages));
  for (const part of copy.flatMap((message) => message.parts)) {
    if (part.type === 'reasoning') delete part.id;
    delete part.approval?.approved;
  }
  return copy;
}

/** The text of a message, without the error texts. */
export function said(message) {
  const texts = (message?.parts ?? []).filter((part) => part.type === 'text' && !part.text.startsWith('[error] '));
  return texts.map((part) => part.text).join('');
}
