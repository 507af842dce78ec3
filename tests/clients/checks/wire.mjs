// The streams on the wire: headers, framing, cursors.

import assert from 'node:assert/strict';

import { assertNumbered, assertWholeRun } from '../chunks.mjs';
import { openStream, readStream } from '../sse.mjs';

/** A whole run and its full replay. */
async function replayOf({ api, id }, text) {
  const run = await api.settled((await api.send(id, text)).id);
  const whole = await readStream(api.runEvents(run.id));
  await assertWholeRun(whole);
  return { run, whole, url: api.runEvents(run.id) };
}

const lines = (events) => events.map(({ id, data }) => `id: ${id} data: ${data}`);

export const wire = [
  {
    name: 'wire: headers and framing of a run',
    run: async ({ api, id }) => {
      const messages = [{ id: 'm-1', role: 'user', parts: [{ type: 'text', text: '/tool' }] }];
      const asked = await openStream(`${api.url}/api/chat`, {
        method: 'POST',
        body: JSON.stringify({ id, messages, trigger: 'submit-message' }),
        headers: { accept: '*/*', 'content-type': 'application/json' },
      });
      await asked.recording.untilOver();
      const run = asked.recording.chunks[0].messageMetadata.run_id;
      const replayed = await openStream(api.runEvents(run));
      await replayed.recording.untilOver();

      for (const { response, recording } of [asked, replayed]) {
        assert.equal(response.headers.get('x-vercel-ai-ui-message-stream'), 'v1');
        assert.match(response.headers.get('content-type'), /^text\/event-stream/);
        await assertWholeRun(recording);
        assert.equal(recording.blocks[0].retry, '1000', 'retry: 1000 stands in the first event');
        assert.ok(recording.blocks.every((block) => block.data !== undefined), 'no block without data, which some take for an event');
        assert.equal(recording.text.slice(-14), 'data: [DONE]\n\n', 'the stream ends with [DONE]');
        assert.equal(recording.blocks.filter((block) => block.data === '[DONE]').length, 1, '[DONE] is said once');
        const hasName = (block) => block.event !== undefined; // EventSource would not give it to onmessage
        assert.ok(!recording.blocks.some(hasName), 'no event has a name');
      }
      const [first, again] = [asked, replayed].map(({ recording }) => lines(recording.events));
      assert.deepEqual(again, first, 'the replay is the live stream, byte for byte');
    },
  },
  {
    name: 'wire: a stream cut at every event goes on where it was cut',
    run: async (scene) => {
      const { whole, url } = await replayOf(scene, '/tool');
      const all = lines(whole.events);
      for (let count = 0; count <= all.length; count++) {
        const opened = await openStream(url);
        await opened.recording.until(({ events }) => events.length >= count, `${count} events`);
        opened.cut();
        const before = opened.recording.events.slice(0, count);
        const cursor = before.at(-1)?.id;
        const ways = cursor === undefined ? [[url, {}]] : [
          [url, { headers: { 'last-event-id': cursor } }],
          [`${url}?after=${cursor}`, {}],
          [`${url}?after=0`, { headers: { 'last-event-id': cursor } }], // the header wins
        ];
        for (const [address, init] of ways) {
          const rest = await readStream(address, init);
          assert.equal(rest.end, 'clean');
          assert.ok(rest.isDone, 'the rest ends with [DONE]');
          const what = `cut after ${count} events, resumed with ${JSON.stringify([address.slice(url.length), init])}`;
          assert.deepEqual([...lines(before), ...lines(rest.events)], all, what);
        }
      }
    },
  },
  {
    name: 'wire: a live stream that is cut goes on where it was cut',
    run: async ({ api, id }) => {
      const { id: run } = await api.send(id, '/slow 60');
      const url = api.runEvents(run);
      const pieces = [];
      for (const more of [1, 4, 10]) {
        const headers = pieces.length > 0 ? { 'last-event-id': pieces.at(-1).id } : {};
        const opened = await openStream(url, { headers });
        await opened.recording.until(({ events }) => events.length >= more, `${more} more events`);
        opened.cut();
        pieces.push(...opened.recording.events.slice(0, more));
      }
      const headers = { 'last-event-id': pieces.at(-1).id };
      const resumed = await readStream(`${api.url}/api/chat/${id}/stream`, { headers });
      const whole = await readStream(url);
      await assertWholeRun(whole);
      assert.deepEqual(lines([...pieces, ...resumed.events]), lines(whole.events));
    },
  },
  {
    name: 'wire: a run in the middle of a session is a stream of its own',
    run: async (scene) => {
      await replayOf(scene, 'one');
      const { run, whole, url } = await replayOf(scene, 'two');
      await replayOf(scene, 'three');
      assert.equal(Number(whole.events[0].id), run.first_seq);
      assert.equal(Number(whole.events.at(-1).id), run.last_seq);
      assert.ok(run.first_seq > 1);
      const [again, fromBefore] = [await readStream(url), await readStream(`${url}?after=1`)];
      assert.deepEqual(lines(again.events), lines(whole.events), 'it does not change any more');
      assert.deepEqual(lines(fromBefore.events), lines(whole.events), 'a cursor before it gives all of it');
    },
  },
  {
    name: 'wire: a cursor beyond the newest event is refused',
    run: async (scene) => {
      const { run } = await replayOf(scene, 'one');
      const { api, id } = scene;
      const beyond = String(run.last_seq + 1);
      const accept = { accept: 'text/event-stream' };
      for (const path of [`/v1/runs/${run.id}/events`, `/v1/sessions/${id}/events`]) {
        const answers = [
          await api.call('GET', `${path}?after=${beyond}`, undefined, accept),
          await api.call('GET', path, undefined, { ...accept, 'last-event-id': beyond }),
          await api.call('GET', `${path}?after=${beyond}`),
          await api.call('GET', `${path}?after=x`, undefined, accept),
          await api.call('GET', `${path}?after=-1`, undefined, accept),
        ];
        assert.deepEqual(answers.map((answer) => answer.status), [400, 400, 400, 400, 400], path);
        answers.forEach(({ body }) => assert.equal(typeof body.error?.code, 'string', JSON.stringify(body)));
      }
    },
  },
  {
    name: 'wire: pages of events are the stream',
    run: async (scene) => {
      const { run, whole } = await replayOf(scene, '/tool');
      for (const path of [`/v1/runs/${run.id}/events`, `/v1/sessions/${scene.id}/events`]) {
        const items = [];
        let cursor = '';
        do {
          const page = await scene.api.get(`${path}?limit=3${cursor}`);
          assert.ok(page.items.length <= 3, 'limit holds');
          items.push(...page.items);
          cursor = page.next_cursor === null ? undefined : `&cursor=${encodeURIComponent(page.next_cursor)}`;
          assert.ok(items.length <= whole.events.length, 'the pages come to an end');
        } while (cursor !== undefined);
        assert.deepEqual(items.map((item) => item.seq), whole.events.map((event) => Number(event.id)));
        assert.deepEqual(items.map((item) => item.event), whole.chunks);
        for (const item of items) {
          assert.equal(item.run_id, run.id);
          assert.match(item.at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
        }
      }
    },
  },
  {
    name: 'wire: a session stream stays open from run to run',
    run: async ({ api, id }) => {
      await api.createSession(id, 'default');
      const opened = await openStream(`${api.url}/v1/sessions/${id}/events`);
      assert.match(opened.response.headers.get('content-type'), /^text\/event-stream/);
      const { recording } = opened;
      for (const [index, text] of ['one', '/tool', 'three'].entries()) {
        await api.send(id, text);
        await recording.untilChunk('finish', index + 1);
        assert.equal(recording.end, undefined, 'the stream is still open');
        assert.ok(!recording.isDone, 'it says no [DONE]');
      }
      opened.cut();
      assertNumbered(recording.events);
      assert.equal(recording.events[0].id, '1');
      const late = await openStream(`${api.url}/v1/sessions/${id}/events?after=2`);
      await late.recording.untilChunk('finish', 3);
      late.cut();
      const rest = lines(recording.events.slice(2));
      assert.deepEqual(lines(late.recording.events), rest, 'a late reader gets the same from its cursor on');
    },
  },
  {
    name: 'wire: a silent stream says that it is alive',
    isSlow: true,
    run: async ({ api, id }) => {
      const { id: run } = await api.send(id, '/hang');
      const { recording, cut } = await openStream(api.runEvents(run));
      const hasComment = ({ text }) => /^: .*\n/m.test(text);
      await recording.until(hasComment, 'a comment after 15 s of silence');
      cut();
      await api.call('POST', `/v1/runs/${run}/cancel`);
      assert.equal((await api.settled(run)).status, 'cancelled');
    },
  },
];
