// What readers get of every recorded conversation with a real agent, and of turns that say what no recorded agent said.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import { openChat, sdk, VERSIONS } from '../chat.mjs';
import { assertSameMessages, assertValid, assertWellFormed } from '../chunks.mjs';

/** A check for each stream in a file that `tests/it/transcripts.rs` wrote. */
export function streams(file) {
  const lines = readFileSync(file, 'utf8').split('\n').filter((line) => line !== '');
  assert.ok(lines.length > 50, `there are next to no streams in ${file}`);
  return lines.map((line) => JSON.parse(line)).map(({ name, status, chunks, parts }) => ({
    name: `stream ${name}`,
    run: async () => {
      const stream = [{ type: 'start', messageId: 'answer', messageMetadata: {} }, ...chunks];
      assertWellFormed(stream);
      await assertValid(stream);
      const stored = { id: 'answer', role: 'assistant', metadata: {}, parts };
      for (const version of VERSIONS) {
        const chat = openChat({ version, id: name, url: '', answer: () => answerOf(stream) });
        await chat.sendMessage({ text: 'go on' });
        assert.equal(chat.status, status === 'completed' ? 'ready' : 'error', `ai ${version}: ${chat.error?.message}`);
        if (parts.length > 0) {
          assertSameMessages(chat.messages.slice(1).map(withoutWithdrawn), [stored], `ai ${version} makes the message that is stored`);
          await sdk(version).validateUIMessages({ messages: [stored] });
        }
      }
    },
  }));
}

/** What a client has of a message, as it is stored: a part that the agent withdrew is an empty text. */
function withoutWithdrawn(message) {
  const withdrawn = new Set(message.parts.flatMap((part) => (part.type === 'data-retracted' ? part.data.parts : [])));
  const parts = message.parts.map((part, at) => (withdrawn.has(at) && 'text' in part ? { ...part, text: '' } : part));
  return { ...message, parts };
}

function answerOf(chunks) {
  const body = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join('');
  return new Response(`${body}data: [DONE]\n\n`, { headers: { 'content-type': 'text/event-stream' } });
}
