// A turn that is watched while it runs: streamed, left and found again, stopped.

import assert from 'node:assert/strict';

import { NEWEST, openChat, STRICT, streaming, VERSIONS } from '../chat.mjs';
import { assertSameMessages, assertWholeRun, said } from '../chunks.mjs';
import { eventually } from '../wait.mjs';

export const live = [
  {
    name: 'live: chunks arrive while the run runs',
    run: async ({ api, id }) => {
      const chat = openChat({ url: api.url, id });
      const sent = chat.sendMessage({ text: '/slow 60' });
      const recording = await streaming(chat, 'text-delta');
      const [start] = recording.chunks;
      const run = await api.run(start.messageMetadata.run_id);
      assert.equal(run.status, 'running', 'the first text is there before the end');
      assert.ok(!recording.chunks.some((chunk) => chunk.type === 'finish'), 'the stream goes on');
      await eventually(() => chat.status === 'streaming' || undefined, 'the client says that it streams');
      assert.equal(start.messageId, run.response_id, 'start names the message that will be stored');
      assert.deepEqual(start.messageMetadata, { run_id: run.id, session_id: id }, 'start names run and session');

      await sent;
      await assertWholeRun(recording);
      assert.equal(chat.status, 'ready');
      const deltas = recording.chunks.filter((chunk) => chunk.type.endsWith('-delta')).length;
      assert.ok(deltas >= 60, `/slow 60 gave ${deltas} deltas`);
      assert.equal((await api.settled(run.id)).status, 'completed');
      assertSameMessages(chat.messages, await api.messages(id), 'the client holds what is stored');
    },
  },
  ...VERSIONS.map((version) => ({
    name: `live: a page reloaded in mid-run shows the answer once (ai ${version})`,
    run: async ({ api, id }) => {
      const first = openChat({ version, url: api.url, id });
      const sent = first.sendMessage({ text: '/slow 60' });
      const recording = await streaming(first, 'text-delta', 5);
      const [start] = recording.chunks;

      const history = await api.messages(id);
      assertSameMessages(history, first.messages.slice(0, 1), 'the history has no message of the unfinished run');
      const partial = await api.messages(id, '?partial=1');
      assert.deepEqual(partial.map((message) => message.id), [history[0].id, start.messageId], '?partial=1 has it');
      const page = openChat({ version, url: api.url, id, messages: history });
      await page.resumeStream();
      await sent;

      assert.deepEqual(page.errors, []);
      assert.equal(page.status, 'ready');
      await assertWholeRun(recording);
      await assertWholeRun(page.recording);
      assert.deepEqual(page.recording.events, recording.events, 'the resumed stream is the whole first one');
      await api.settled(start.messageMetadata.run_id);
      const stored = await api.messages(id);
      assertSameMessages(page.messages, stored, 'the reloaded page holds what is stored');
      assertSameMessages(first.messages, stored, 'the first page holds the same');
      const idle = await api.call('GET', `/api/chat/${id}/stream`);
      assert.equal(idle.status, 204, 'there is nothing to resume afterwards');
      await page.resumeStream();
      assert.equal(page.status, 'ready', 'a resume of nothing leaves the page ready');
      assertSameMessages(page.messages, stored, 'and its messages alone');
    },
  })),
  {
    name: 'live: several pages resume at once and get the same',
    run: async ({ api, id }) => {
      const { id: run } = await api.send(id, '/slow 60');
      await api.reached(run, 'running');
      const history = await api.messages(id);
      const open = (version) => openChat({ version, url: api.url, id, messages: history });
      const pages = [NEWEST, NEWEST, STRICT, STRICT].map(open);
      await Promise.all(pages.map((page) => page.resumeStream()));
      const stored = await api.messages(id);
      assert.equal(stored.length, 2);
      for (const page of pages) {
        assert.deepEqual(page.errors, []);
        await assertWholeRun(page.recording);
        assert.equal(page.recording.chunks[0].messageMetadata.run_id, run);
        assertSameMessages(page.messages, stored, 'each page holds what is stored');
      }
    },
  },
  {
    name: 'live: a chat that does not exist yet has nothing to resume',
    run: async ({ api, id }) => {
      const page = openChat({ url: api.url, id });
      await page.resumeStream();
      assert.equal(page.status, 'ready', `the client's error is ${page.error}`);
    },
  },
  ...VERSIONS.map((version) => ({
    name: `live: stop ends the run, with what it has said (ai ${version})`,
    run: async ({ api, id }) => {
      const chat = openChat({ version, url: api.url, id });
      const sent = chat.sendMessage({ text: '/slow 500' });
      const recording = await streaming(chat, 'text-delta', 3);
      await api.post(`/api/chat/${id}/stop`, undefined, 200, 202, 204);
      await sent;

      await assertWholeRun(recording);
      assert.equal(recording.chunks.at(-2).type, 'abort', 'a cancelled run says abort before finish');
      assert.equal(chat.status, 'ready');
      assert.deepEqual(chat.errors, []);
      const run = await api.settled(recording.chunks[0].messageMetadata.run_id);
      assert.equal(run.status, 'cancelled');
      const stored = await api.messages(id);
      assertSameMessages(chat.messages, stored, 'the client holds what is stored');
      assert.ok(said(stored.at(-1)).length > 0, 'what it had said is kept');
      assert.equal((await api.call('GET', `/api/chat/${id}/stream`)).status, 204);
    },
  })),
  {
    name: 'live: stop reaches an agent that hangs',
    run: async ({ api, id }) => {
      const chat = openChat({ url: api.url, id });
      const sent = chat.sendMessage({ text: '/hang' });
      const recording = await streaming(chat, 'start');
      await api.post(`/api/chat/${id}/stop`, undefined, 200, 202, 204);
      await sent;
      await assertWholeRun(recording);
      assert.equal((await api.settled(recording.chunks[0].messageMetadata.run_id)).status, 'cancelled');
      assert.equal(chat.status, 'ready');
    },
  },
  ...VERSIONS.map((version) => ({
    name: `live: a client that goes away does not stop the run (ai ${version})`,
    run: async ({ api, id }) => {
      const chat = openChat({ version, url: api.url, id });
      const sent = chat.sendMessage({ text: '/slow 60' });
      const recording = await streaming(chat, 'text-delta', 3);
      await chat.stop();
      await sent;
      assert.equal(chat.status, 'ready');
      const run = await api.settled(recording.chunks[0].messageMetadata.run_id);
      assert.equal(run.status, 'completed', 'the run went on to its own end');
      const [, answer] = await api.messages(id);
      assert.ok(said(answer).length > said(chat.lastMessage).length, 'the rest of the answer is stored');
    },
  })),
];
