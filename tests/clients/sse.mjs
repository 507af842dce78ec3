// Server-sent events as they are on the wire, noted event by event while they arrive.

import { authorized } from './token.mjs';
import { DEADLINE } from './wait.mjs';

/** What one stream brought so far. A block is what stands between two blank lines. */
export class Recording {
  text = ''; // everything, as it came
  blocks = []; // { id, event, retry, comment, data }, only what was there
  end = undefined; // 'clean', or the Error that cut the stream
  #decoder = new TextDecoder();
  #line = '';
  #block = {};
  #waiting = [];

  /** The blocks with a chunk in them. */
  get events() {
    return this.blocks.filter((block) => block.data !== undefined && block.data !== '[DONE]');
  }

  get chunks() {
    return this.events.map((event) => JSON.parse(event.data));
  }

  get isDone() {
    return this.blocks.some((block) => block.data === '[DONE]');
  }

  /** Notes a body to its end, in the background. */
  async read(body) {
    try {
      for await (const bytes of body) this.#take(bytes);
      this.#over('clean');
    } catch (error) {
      this.#over(error);
    }
  }

  /** Resolves when the test holds; rejects when it does not and the stream is over. */
  until(test, what) {
    return new Promise((resolve, reject) => {
      const seen = () => `after ${this.blocks.length} blocks, the last ${JSON.stringify(this.blocks.at(-1))}`;
      const timer = setTimeout(() => settle(new Error(`${what}: not seen in time ${seen()}`)), DEADLINE);
      const look = () => {
        if (test(this)) settle();
        else if (this.end !== undefined) settle(new Error(`${what}: the stream ended (${this.end}) ${seen()}`));
      };
      const settle = (error) => {
        clearTimeout(timer);
        this.#waiting = this.#waiting.filter((other) => other !== look);
        if (error) reject(error);
        else resolve();
      };
      this.#waiting.push(look);
      look();
    });
  }

  /** Resolves when so many chunks of the type have come. */
  untilChunk(type, count = 1) {
    const isThere = () => this.chunks.filter((chunk) => chunk.type === type).length >= count;
    return this.until(isThere, `${count} × ${type}`);
  }

  /** Resolves when the stream is over, however it ended. */
  untilOver() {
    return this.until(() => this.end !== undefined, 'the end of the stream');
  }

  #take(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    this.text += text;
    const lines = (this.#line + text).split('\n');
    this.#line = lines.pop();
    lines.forEach((line) => this.#field(line));
    [...this.#waiting].forEach((look) => look());
  }

  #field(line) {
    if (line === '') {
      if (Object.keys(this.#block).length > 0) this.blocks.push(this.#block);
      this.#block = {};
    } else if (line.startsWith(':')) {
      this.#block.comment = line.slice(1).trim();
    } else {
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      const isMoreData = name === 'data' && this.#block.data !== undefined;
      this.#block[name] = isMoreData ? `${this.#block.data}\n${value}` : value;
    }
  }

  #over(end) {
    const isCutInEvent = this.#line !== '' || Object.keys(this.#block).length > 0;
    this.end = end === 'clean' && isCutInEvent ? new Error('a clean end in the middle of an event') : end;
    [...this.#waiting].forEach((look) => look());
  }
}

/** Opens a stream and notes it in the background. `cut` goes away from it as a closed page does. */
export async function openStream(url, { headers, ...init } = {}) {
  const control = new AbortController();
  const signal = control.signal;
  const accepting = authorized(url, { accept: 'text/event-stream', ...headers });
  const response = await fetch(url, { ...init, signal, headers: accepting });
  if (response.status !== 200) {
    throw new Error(`${init.method ?? 'GET'} ${url} answered ${response.status}: ${await response.text()}`);
  }
  const recording = new Recording();
  recording.read(response.body);
  return { response, recording, cut: () => control.abort() };
}

/** A stream to its end. */
export async function readStream(url, init) {
  const { recording } = await openStream(url, init);
  await recording.untilOver();
  return recording;
}
