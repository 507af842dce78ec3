// The AI SDK's chat without a framework: what `useChat` is around, for each version of the client that is checked.

import { Recording } from './sse.mjs';
import { authorized } from './token.mjs';
import { eventually } from './wait.mjs';

export const NEWEST = '6.0.326';
export const STRICT = '6.0.0'; // the last word on chunks: before 6.0.231 a client ends the stream on an unknown field
export const VERSIONS = [NEWEST, STRICT];

const sdks = new Map();
const chats = new Map();
for (const version of VERSIONS) {
  const sdk = await import(`ai-${version}`);
  sdks.set(version, sdk);
  chats.set(version, class extends sdk.AbstractChat {
    errors = []; // what onError was called with
    finishes = []; // what onFinish was called with
    recordings = []; // the streams that it read, as they came over the wire

    get recording() {
      return this.recordings.at(-1);
    }
  });
}

/** What a framework's state container does, with values of its own, as React's has. */
class MemoryState {
  status = 'ready';
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  snapshot = (value) => structuredClone(value);
  pushMessage = (message) => {
    this.messages = [...this.messages, this.snapshot(message)];
  };
  popMessage = () => {
    this.messages = this.messages.slice(0, -1);
  };
  replaceMessage = (index, message) => {
    this.messages = this.messages.with(index, this.snapshot(message));
  };
}

/**
 * A chat as a page opens it. `messages` is the history that it was served; `resumeFrom` an address to resume from in
 * place of the default one; `answer` gives what is answered in place of a daemon.
 */
export function openChat(options) {
  const { version = NEWEST, url, id, messages = [] } = options;
  const headers = authorized(url, options.headers);
  const { resumeFrom, sendAutomaticallyWhen, answer = fetch } = options;
  const Chat = chats.get(version);
  const { DefaultChatTransport } = sdks.get(version);
  const resumeRequest = () => ({ api: resumeFrom, headers: { accept: 'text/event-stream', ...headers } });
  const transport = new DefaultChatTransport({
    api: `${url}/api/chat`,
    headers,
    fetch: async (input, init) => {
      const response = await answer(input, init);
      if (response.status !== 200) return response;
      // Both read by themselves: the client leaves a stream at its `error` chunk.
      const [forRecording, forClient] = response.body.tee();
      const recording = new Recording();
      chat.recordings.push(recording);
      recording.read(forRecording);
      return new Response(forClient, { headers: response.headers });
    },
    prepareReconnectToStreamRequest: resumeFrom && resumeRequest,
  });
  const chat = new Chat({
    id,
    transport,
    sendAutomaticallyWhen,
    state: new MemoryState(structuredClone(messages)),
    onError: (error) => chat.errors.push(error),
    onFinish: (finish) => chat.finishes.push(finish),
  });
  return chat;
}

/** A page that is given a run's stored stream from the beginning. */
export async function replay(version, { url, id, messages, run }) {
  const chat = openChat({ version, url, id, messages, resumeFrom: `${url}/v1/runs/${run}/events` });
  await chat.resumeStream();
  return chat;
}

/** The recording of the chat's newest stream, once so many chunks of the type have come over it. */
export async function streaming(chat, type, count = 1) {
  const recording = await eventually(() => chat.recording, 'the answer to the request');
  await recording.untilChunk(type, count);
  return recording;
}

/** The package itself. */
export function sdk(version) {
  return sdks.get(version);
}
