// A page with React, as a browser shows it: the code of a document, run with a version of the AI SDK.

import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { build } from 'esbuild';
import { JSDOM } from 'jsdom';

import { tokenOf } from './token.mjs';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

/** The packages that an application has installed, by the major version of the AI SDK. */
export const INSTALLED = {
  6: { ai: 'ai-6.0.326', '@ai-sdk/react': 'react-sdk-6' },
  7: { ai: 'ai-7.0.173', '@ai-sdk/react': 'react-sdk-7' },
};

/** The blocks of code in a language of a document of this repository. */
export async function snippets(document, language) {
  const text = await readFile(here(`../../${document}`), 'utf8');
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\``, 'gms'))].map(([, code]) => code);
}

const SHELL = `
  import { createElement, StrictMode } from 'react';
  import { createRoot } from 'react-dom/client';
  import { Conversation } from 'the-snippet';
  export const mount = (element, strict) => {
    const root = createRoot(element);
    const page = createElement(Conversation);
    root.render(strict ? createElement(StrictMode, null, page) : page);
    return () => root.unmount();
  };
`;

const bundles = new Map();

/** One file with everything in it, as a bundler makes it; with this daemon and this chat in place of the document's. */
async function bundle(code, major, { url, id }) {
  const key = `${major} ${code}`;
  if (!bundles.has(key)) bundles.set(key, bundled(code, major));
  const text = await bundles.get(key);
  // esbuild writes ASCII.
  const [address, chat, secret] = ['"http://127.0.0.1:7717"', 'id = "hello"', 'token = "\\u2026"'];
  if (![address, chat, secret].every((part) => text.includes(part))) {
    throw new Error('the document names another address, chat or token');
  }
  const own = text.replace(address, JSON.stringify(url)).replace(chat, `id = ${JSON.stringify(id)}`);
  return own.replace(secret, `token = ${JSON.stringify(tokenOf(url))}`);
}

async function bundled(code, major) {
  const plugin = {
    name: 'the document',
    setup: ({ onLoad, onResolve, resolve }) => {
      onResolve({ filter: /^the-snippet$/ }, () => ({ path: 'snippet.tsx', namespace: 'document' }));
      onLoad({ filter: /.*/, namespace: 'document' }, () => ({ contents: code, loader: 'tsx', resolveDir: here('.') }));
      // Only the document's own imports: what a package brings along is its own.
      onResolve({ filter: /^(ai|@ai-sdk\/react)$/, namespace: 'document' }, ({ path, kind }) => (
        resolve(INSTALLED[major][path], { kind, resolveDir: here('.') })
      ));
    },
  };
  const built = await build({
    stdin: { contents: SHELL, resolveDir: here('.'), loader: 'js' },
    plugins: [plugin],
    bundle: true,
    write: false,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    jsx: 'automatic',
    define: { 'process.env.NODE_ENV': '"development"' },
    logLevel: 'silent',
  });
  return built.outputFiles[0].text;
}

/** An open page. */
export class Page {
  errors = [];
  #dom;
  #unmount;

  /** Loads the code of a document, as a browser does when the page is opened. */
  static async open(code, major, { url, id, strict = false }) {
    const page = new Page();
    page.#dom = new JSDOM('<!doctype html><div id="root"></div>', { url: 'http://127.0.0.1/', pretendToBeVisual: true });
    const { window } = page.#dom;
    // As `window.onerror` and the console of a browser tell it.
    window.addEventListener('error', (event) => page.errors.push(String(event.error ?? event.message)));
    const globals = {
      window,
      document: window.document,
      navigator: window.navigator,
      reportError: (error) => page.errors.push(String(error)),
    };
    // Newer versions of Node have some of them, which are not to be assigned to.
    Object.entries(globals).forEach(([name, value]) => (
      Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
    ));
    const file = join(here('.'), 'node_modules', `.page-${process.pid}-${Math.random().toString(36).slice(2)}.mjs`);
    await writeFile(file, await bundle(code, major, { url, id }));
    try {
      const { mount } = await import(pathToFileURL(file));
      page.#unmount = mount(window.document.getElementById('root'), strict);
    } finally {
      await rm(file, { force: true });
    }
    return page;
  }

  get #root() {
    return this.#dom.window.document.getElementById('root');
  }

  /** What the messages say, in order. */
  get messages() {
    return [...this.#root.querySelectorAll('p')].map((paragraph) => paragraph.textContent);
  }

  get button() {
    return this.#root.querySelector('button');
  }

  /** Types a message and sends it, as a person does. */
  send(text) {
    const { window } = this.#dom;
    const input = this.#root.querySelector('input');
    // Past React, which only hears of what it did not set itself.
    Object.getOwnPropertyDescriptor(window.HTMLInputElement.prototype, 'value').set.call(input, text);
    input.dispatchEvent(new window.Event('input', { bubbles: true }));
    return new Promise((resolve) => setTimeout(resolve, 0)).then(() => this.button.click());
  }

  close() {
    this.#unmount();
    this.#dom.window.close();
  }
}
