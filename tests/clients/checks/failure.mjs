// Runs that fail, and a daemon that dies.

import assert from 'node:assert/strict';

import { openChat, replay, streaming, VERSIONS } from '../chat.mjs';
import { assertSameMessages, assertWholeRun, said } from '../chunks.mjs';
import { openStream, readStream } from '../sse.mjs';

export const failure = [
  ...VERSIONS.map((version) => ({
    name: `failure: the agent's error reaches the client and the history (ai ${version})`,
    run: async ({ api, id }) => {
      const chat = openChat({ version, url: api.url, id });
      await chat.sendMessage({ text: '/fail boom' });
      await assertWholeRun(chat.recording);
      assert.equal(chat.recording.chunks.at(-2).type, 'error');
      assert.equal(chat.status, 'error');
      assert.equal(chat.errors.length, 1);
      assert.match(chat.errors[0].message, /boom/);
      const run = await api.settled(chat.recording.chunks[0].messageMetadata.run_id);
      assert.equal(run.status, 'failed');
      assert.match(run.error, /boom/);

      const history = await api.messages(id);
      assertSameMessages(chat.messages, history, 'the client holds what is stored');
      assert.equal(history[1].metadata.status, 'failed');
      assert.equal(history[1].metadata.cause, 'agent_error');
      const isError = (part) => part.type === 'text' && part.text === '[error] boom';
      assert.ok(history[1].parts.some(isError), `the answer is ${JSON.stringify(history[1])}`);
      const page = openChat({ version, url: api.url, id, messages: history });
      await page.resumeStream();
      assert.equal(page.status, 'ready', 'after a reload there is nothing to resume');
      await page.sendMessage({ text: 'go on' });
      assert.equal(page.status, 'ready', `the next message works: ${page.error}`);
      assertSameMessages(page.messages, await api.messages(id), 'and the error stays in the history');
    },
  })),
  {
    name: 'failure: an exit code other than 0 is a failed run',
    run: async ({ api, id }) => {
      const chat = openChat({ url: api.url, id });
      await chat.sendMessage({ text: '/exit 3' });
      await assertWholeRun(chat.recording);
      assert.equal(chat.status, 'error');
      assert.equal((await api.settled(chat.recording.chunks[0].messageMetadata.run_id)).status, 'failed');
      assertSameMessages(chat.messages, await api.messages(id), 'the client holds what is stored');
    },
  },
  {
    name: 'failure: a daemon killed in mid-stream is no clean end, and its run goes on under the next',
    run: async ({ startDaemon, id }) => {
      const daemon = await startDaemon();
      const chats = VERSIONS.map((version) => openChat({ version, url: daemon.url, id: `${id}-${version}` }));
      const sent = chats.map((chat) => chat.sendMessage({ text: '/slow 500' }));
      const recordings = await Promise.all(chats.map((chat) => streaming(chat, 'text-delta', 5)));
      const queued = await daemon.api.send(chats[0].id, 'and then?', 'm-queued');
      await daemon.kill();
      await Promise.all(sent);
      await Promise.all(recordings.map((recording) => recording.untilOver()));
      chats.forEach((chat, index) => {
        assert.equal(chat.status, 'error', 'the client sees that the stream was cut');
        assert.ok(!recordings[index].isDone && recordings[index].end !== 'clean', 'the stream has no end');
      });

      await daemon.restart();
      const { api, url } = daemon;
      for (const [index, version] of VERSIONS.entries()) {
        const chat = chats[index];
        const [start] = recordings[index].chunks;
        const run = await api.settled(start.messageMetadata.run_id);
        assert.equal(run.status, 'completed');
        const replayed = await readStream(api.runEvents(run.id));
        await assertWholeRun(replayed);
        const seen = recordings[index].events;
        assert.deepEqual(replayed.events.slice(0, seen.length), seen, 'what the client saw is there, once');

        if (index === 0) {
          assert.equal((await api.settled(queued.id)).status, 'completed', 'what was queued is answered');
        }
        const history = await api.messages(chat.id);
        const page = await replay(version, { url, id: chat.id, messages: history.slice(0, 1), run: run.id });
        assert.equal(page.status, 'ready', 'a replay ends well');
        assertSameMessages(page.messages, history.slice(0, 2), 'a replay makes the stored message');
        assert.ok(said(history[1]).startsWith(said(chat.lastMessage)), 'what was said is kept');

        const next = openChat({ version, url, id: chat.id, messages: history });
        await next.resumeStream();
        assert.equal(next.status, 'ready', 'there is nothing to resume');
        await next.sendMessage({ text: 'go on' });
        assert.equal(next.status, 'ready', `the next message works: ${next.error}`);
        assertSameMessages(next.messages, await api.messages(chat.id), 'the client holds what is stored');
      }
    },
  },
  {
    name: 'failure: what an agent said before the daemon died is there once',
    run: async ({ startDaemon, id }) => {
      const daemon = await startDaemon();
      await daemon.api.createSession(id, 'counting');
      const { id: run } = await daemon.api.send(id, 'count');
      const { recording } = await openStream(daemon.api.runEvents(run));
      await recording.untilChunk('text-delta', 10);
      await daemon.kill();
      await recording.untilOver();

      await daemon.restart();
      // The run is interrupted, or goes on where the agent is by now: either way nothing is lost or said twice.
      const { status } = await daemon.api.settled(run);
      assert.ok(['interrupted', 'completed'].includes(status), `the run is ${status}`);
      const whole = await readStream(daemon.api.runEvents(run));
      await assertWholeRun(whole);
      const seen = recording.events;
      assert.deepEqual(whole.events.slice(0, seen.length), seen, 'what the client saw is there');
      const [, answer] = await daemon.api.messages(id);
      const numbers = said(answer).trim().split(' ').map(Number);
      assert.deepEqual(numbers, numbers.map((_, index) => index + 1), 'each number is there once, in order');
      if (status === 'completed') assert.equal(numbers.length, 250, 'the agent counted to its end');
    },
  },
];
