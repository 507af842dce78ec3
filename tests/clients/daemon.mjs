// The real daemon, as a child process on a directory of its own.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { Api } from './api.mjs';
import { know } from './token.mjs';
import { within } from './wait.mjs';

const STOP_DEADLINE = 10_000;

export class Daemon {
  #bin;
  #dir;
  #child;

  constructor(bin, dir) {
    this.#bin = bin;
    this.#dir = dir;
  }

  /** A daemon on a new file. */
  static async start(bin, dir, config) {
    await mkdir(dir, { recursive: true });
    await writeFile(join(dir, 'mainstay.toml'), config);
    const daemon = new Daemon(bin, dir);
    await daemon.restart();
    return daemon;
  }

  get url() {
    return this.api.url;
  }

  get isRunning() {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Starts on the same file again; the port is another one. */
  async restart() {
    const files = ['--db', join(this.#dir, 't.db'), '--config', join(this.#dir, 'mainstay.toml')];
    const args = ['serve', '--listen', '127.0.0.1:0', ...files];
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('MAINSTAY_')));
    this.#child = spawn(this.#bin, args, { cwd: this.#dir, env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child.stderr.pipe(createWriteStream(join(this.#dir, 'stderr.log'), { flags: 'a' }));
    try {
      const url = await within(this.#ready(), `${this.#bin} prints its listening line`);
      // Not there where the config names a token.
      know(url, (await readFile(join(this.#dir, 't.db-token'), 'utf8').catch(() => undefined))?.trimEnd());
      this.api = new Api(url);
    } catch (error) {
      this.#child.kill('SIGKILL');
      throw new Error(`${error.message}\n${await this.log()}`);
    }
  }

  #ready() {
    return new Promise((resolve, reject) => {
      this.#child.on('error', reject);
      const early = (code, signal) => reject(new Error(`it ended with ${signal ?? code} before it was ready`));
      this.#child.on('close', early);
      createInterface(this.#child.stdout).on('line', (line) => {
        const address = /^listening on (http:\/\/\S+)$/.exec(line);
        if (address) resolve(address[1]);
      });
    });
  }

  /** As a crash does: no warning, no last word. */
  async kill() {
    await this.#end('SIGKILL');
  }

  async stop() {
    try {
      await within(this.#end('SIGTERM'), 'the daemon ends after SIGTERM', STOP_DEADLINE);
    } finally {
      await this.kill();
    }
  }

  async #end(signal) {
    if (!this.isRunning) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill(signal);
    await ended;
  }

  /** The end of what it wrote to stderr. */
  async log() {
    const text = await readFile(join(this.#dir, 'stderr.log'), 'utf8').catch(() => '');
    return text.split('\n').slice(-20).join('\n').trimEnd();
  }
}
