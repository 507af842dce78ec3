// Every recorded agent turn, from the agent's process to the client's last message.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { openChat, replay, sdk, VERSIONS } from '../chat.mjs';
import { assertSameMessages, assertWholeRun } from '../chunks.mjs';

/** The recorded cases of a folder. */
export function findCases(dir) {
  const files = readdirSync(dir).filter((file) => file.endsWith('.args.json')).sort();
  assert.ok(files.length > 0, `there are no recorded cases in ${dir}`);
  return files.flatMap((file) => {
    const name = file.slice(0, -'.args.json'.length);
    const path = (ending) => join(dir, `${name}.${ending}`);
    const { args = [], signal, asked } = JSON.parse(readFileSync(path('args.json'), 'utf8'));
    // Ends that only the engine's own tests can bring about.
    if (signal !== undefined || asked !== undefined) return [];
    const exitCode = Number(args[args.indexOf('--exit-code') + 1] ?? 0) || 0;
    const { chunks, outcome } = JSON.parse(readFileSync(path('expected.json'), 'utf8'));
    const command = commandOf(path('ndjson'), path('stderr'), exitCode);
    return [{ name, workspace: `case-${name}`, command, chunks, outcome, isFailure: outcome.status !== 'completed' }];
  });
}

/** What writes the recorded bytes again and ends as the recorded process did. */
function commandOf(stdout, stderr, exitCode) {
  if (exitCode === 0 && !existsSync(stderr)) return ['cat', stdout];
  const errors = existsSync(stderr) ? stderr : '/dev/null';
  return ['sh', '-c', 'cat "$1"; cat "$2" >&2; exit "$3"', 'sh', stdout, errors, String(exitCode)];
}

/** The chunks as the turn makes them: how the run ended is put on them when it is settled. */
function withoutOutcome(chunks) {
  const said = chunks.filter((chunk) => chunk.type !== 'message-metadata');
  return said.map(({ messageMetadata, ...chunk }) => chunk);
}

export function recorded(cases) {
  return cases.map((recording) => ({
    name: `recorded ${recording.name}`,
    run: async ({ api }) => {
      const id = recording.workspace;
      await api.createSession(id, recording.workspace);
      const chat = openChat({ url: api.url, id });
      await chat.sendMessage({ text: 'go on' });

      await assertWholeRun(chat.recording);
      const [start, ...chunks] = chat.recording.chunks;
      const run = await api.settled(start.messageMetadata.run_id);
      assert.deepEqual({ status: run.status, cause: run.cause, error: run.error }, recording.outcome, 'the outcome');
      assert.deepEqual(withoutOutcome(chunks), recording.chunks, 'the chunks are those of the recorded lines');
      const { status, cause } = chunks.at(-1).messageMetadata;
      assert.deepEqual({ status, cause }, { status: run.status, cause: run.cause }, 'the end says the outcome');
      assertEnd(chat, recording.isFailure);

      const stored = await api.messages(id);
      assertSameMessages(chat.messages, stored, 'the client holds what is stored');
      for (const version of VERSIONS) {
        await sdk(version).validateUIMessages({ messages: stored });
        const page = await replay(version, { url: api.url, id, messages: stored.slice(0, 1), run: run.id });
        await page.recording.untilOver();
        assertEnd(page, recording.isFailure);
        assertSameMessages(page.messages, stored, `ai ${version} makes the stored message of a replay`);
        assert.deepEqual(page.recording.events, chat.recording.events, 'a replay is the live stream again');
      }
    },
  }));
}

function assertEnd(chat, isFailure) {
  const errors = chat.errors.map((error) => error.message);
  const seen = `the client is ${chat.status}, with the errors ${JSON.stringify(errors)}`;
  assert.equal(chat.status, isFailure ? 'error' : 'ready', seen);
  assert.equal(errors.length, isFailure ? 1 : 0, seen);
  if (isFailure) assert.notEqual(errors[0].trim(), '', 'the error has a text');
}
