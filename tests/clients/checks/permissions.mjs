// A permission that an agent asks for, answered by the page that streams it, by another page, or over HTTP.

import assert from 'node:assert/strict';

import { NEWEST, openChat, sdk, STRICT, streaming, VERSIONS } from '../chat.mjs';
import { assertNumbered, assertSameMessages, assertValid, assertWellFormed, said } from '../chunks.mjs';
import { eventually } from '../wait.mjs';

const question = (chat) => chat.lastMessage?.parts.find((part) => part.state === 'approval-requested')?.approval.id;
const tool = (message) => message.parts.find((part) => part.type === 'dynamic-tool');

/** A page whose agent has asked: its stream is over, although the run goes on. */
async function asked({ api, id }, version, options = {}) {
  const chat = openChat({ version, url: api.url, id, ...options });
  await chat.sendMessage({ text: '/ask hello' });
  const { recording } = chat;
  assert.equal(recording.end, 'clean', 'the stream pauses cleanly');
  assert.equal(recording.chunks.at(-1).type, 'tool-approval-request');
  assert.equal(chat.status, 'ready');
  const run = await api.run(recording.chunks[0].messageMetadata.run_id);
  assert.equal(run.status, 'running');
  return { chat, run, question: question(chat) };
}

/** The streams that a page read are the log of the run, each event once. */
async function assertOneRun(api, id, chat, run) {
  const streams = chat.recordings;
  const chunks = streams.flatMap((recording) => recording.chunks);
  assertWellFormed(chunks);
  await assertValid(chunks);
  assertNumbered(streams.flatMap((recording) => recording.events));
  assert.deepEqual(chat.errors, []);
  const settled = await api.settled(run.id);
  assert.equal(settled.status, 'completed');
  const stored = await api.messages(id);
  // What a page would do that keeps its own history, and a server that is given it.
  await sdk(NEWEST).validateUIMessages({ messages: stored });
  await sdk(NEWEST).convertToModelMessages(stored);
  assertSameMessages(chat.messages, stored, 'the client holds what is stored');
  return stored;
}

/** Answers as a page does that sends by itself once all is answered; ai 6.0.0 leaves that to the page for our tools. */
async function answer(chat, version, id, approved) {
  await chat.addToolApprovalResponse({ id, approved });
  if (version === STRICT) await chat.sendMessage();
  await eventually(() => (chat.recordings.length > 1 && chat.status === 'ready') || undefined, 'the rest of the answer');
  await chat.recording.untilOver();
}

const automatic = (version) => ({
  sendAutomaticallyWhen: sdk(version).lastAssistantMessageIsCompleteWithApprovalResponses,
});

export const permissions = [
  ...VERSIONS.flatMap((version) => [true, false].map((approved) => ({
    name: `permissions: the page that is asked ${approved ? 'approves' : 'denies'} (ai ${version})`,
    run: async ({ api, id }) => {
      const { chat, run, question } = await asked({ api, id }, version, automatic(version));
      await answer(chat, version, question, approved);
      const stored = await assertOneRun(api, id, chat, run);
      assert.equal(tool(stored[1]).state, approved ? 'output-available' : 'output-denied');
      assert.deepEqual(tool(stored[1]).approval, { id: question, approved });
      assert.match(said(stored[1]), approved ? /Allow once/ : /Reject/);
      const permission = await api.get(`/v1/permissions/${question}`);
      assert.deepEqual([permission.state, permission.answered_by], [approved ? 'allowed' : 'denied', 'admin']);
      assert.equal(chat.recordings.length, 2, 'one answer');
    },
  }))),
  ...VERSIONS.map((version) => ({
    name: `permissions: somebody answers over HTTP, and the page goes on (ai ${version})`,
    run: async ({ api, id }) => {
      const { chat, run, question } = await asked({ api, id }, version);
      const listed = await api.get(`/v1/permissions?state=pending&session=${id}`);
      assert.deepEqual(listed.items.map((permission) => [permission.id, permission.run_id]), [[question, run.id]]);
      await api.post(`/v1/permissions/${question}`, { option: 'always' }, 200);
      await api.settled(run.id);
      const stored = await api.messages(id);
      const page = openChat({ version, url: api.url, id, messages: stored.slice(0, 1), resumeFrom: api.runEvents(run.id) });
      await page.resumeStream();
      assertWellFormed(page.recording.chunks);
      // Whoever only looks on is not told how it was answered, but what came of it.
      const answered = { ...tool(stored[1]), approval: { id: question } };
      assert.deepEqual(JSON.parse(JSON.stringify(tool(page.lastMessage))), answered);
      assert.match(said(stored[1]), /Allow always/);
      assert.equal(chat.errors.length, 0);
    },
  })),
  {
    name: 'permissions: a page that is opened meanwhile is asked too, and the first answer counts',
    run: async ({ api, id }) => {
      const { chat, run, question } = await asked({ api, id }, NEWEST, automatic(NEWEST));
      const history = await api.messages(id);
      const other = openChat({ url: api.url, id, messages: history.slice(0, 1), ...automatic(NEWEST) });
      await other.resumeStream();
      assert.equal(other.recording.chunks.at(-1).type, 'tool-approval-request');
      await answer(other, NEWEST, question, true);
      await assertOneRun(api, id, other, run);
      // The page that is late says the same: it gets the rest.
      await answer(chat, NEWEST, question, true);
      await assertOneRun(api, id, chat, run);
      // And so does one that says otherwise: the rest tells what was decided.
      const late = openChat({ url: api.url, id, messages: history.slice(0, 1) });
      const denied = structuredClone(chat.lastMessage);
      tool(denied).state = 'approval-responded';
      tool(denied).approval = { id: question, approved: false };
      late.messages = [history[0], denied];
      await late.sendMessage();
      assert.equal(late.status, 'ready', `${late.error}`);
      assert.equal(tool(late.lastMessage).state, 'output-available');
    },
  },
  {
    name: 'permissions: stop ends a run that asks',
    run: async ({ api, id }) => {
      const { chat, run, question } = await asked({ api, id }, NEWEST, automatic(NEWEST));
      await api.post(`/api/chat/${id}/stop?wait=30`, undefined, 200, 202, 204);
      assert.equal((await api.settled(run.id)).status, 'cancelled');
      assert.equal((await api.get(`/v1/permissions/${question}`)).state, 'cancelled');
      const stored = await api.messages(id);
      await sdk(NEWEST).validateUIMessages({ messages: stored });
      assert.deepEqual(tool(stored[1]).approval, { id: question, approved: false });
      await chat.addToolApprovalResponse({ id: question, approved: true });
      await eventually(() => tool(chat.lastMessage).state === 'output-denied' || undefined, 'the page sees the end');
      await chat.recording.untilOver();
      assert.equal(chat.lastMessage.metadata.status, 'cancelled');
    },
  },
  ...VERSIONS.map((version) => ({
    name: `permissions: a message sent while the agent asks declines the question (ai ${version})`,
    run: async ({ api, id }) => {
      const { chat, run, question } = await asked({ api, id }, version);
      await chat.sendMessage({ text: 'something else' });
      assert.equal(chat.status, 'ready', `${chat.error}`);
      assert.match(said(chat.lastMessage), /something else/);
      assert.equal((await api.settled(run.id)).status, 'completed');
      const permission = await api.get(`/v1/permissions/${question}`);
      assert.deepEqual([permission.state, permission.reason], ['denied', 'declined: a new message was sent']);
      const stored = await api.messages(id);
      assert.deepEqual(stored.map((message) => message.role), ['user', 'assistant', 'user', 'assistant']);
      assert.equal(tool(stored[1]).state, 'output-denied');
    },
  })),
  {
    name: 'permissions: a stream of the run goes on over the question',
    run: async ({ api, id }) => {
      const run = await api.send(id, '/ask');
      const page = openChat({ url: api.url, id, resumeFrom: api.runEvents(run.id) });
      const resumed = page.resumeStream();
      const recording = await streaming(page, 'tool-approval-request');
      await api.post(`/v1/permissions/${recording.chunks.at(-1).approvalId}`, { approved: true }, 200);
      await resumed;
      assertWellFormed(recording.chunks);
      await api.settled(run.id);
    },
  },
];
