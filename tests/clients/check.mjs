// Drives the real AI SDK client against the real daemon. README.md says how to run it.

import { existsSync, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { failure } from './checks/failure.mjs';
import { live } from './checks/live.mjs';
import { permissions } from './checks/permissions.mjs';
import { readme } from './checks/readme.mjs';
import { findCases, recorded } from './checks/recorded.mjs';
import { refusals } from './checks/refusals.mjs';
import { send } from './checks/send.mjs';
import { streams } from './checks/streams.mjs';
import { wire } from './checks/wire.mjs';
import { Daemon } from './daemon.mjs';
import { within } from './wait.mjs';

const CHECK_DEADLINE = 120_000;

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { values: options } = parseArgs({
  options: {
    bin: { type: 'string' },
    cases: { type: 'string', default: here('../cases/openclaw') },
    only: { type: 'string', default: '' },
    streams: { type: 'string' },
  },
});

/** The binary that was built last. */
function newestBinary() {
  const built = ['release', 'debug'].map((profile) => here(`../../target/${profile}/mainstay`)).filter(existsSync);
  if (built.length === 0) throw new Error('there is no mainstay in target/: build it, or name it with --bin');
  return built.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)[0];
}

/** The demo agent in a roomy workspace, and each agent process in a workspace of its own. */
function configOf(cases, dir, server = '') {
  const table = (kind, name, values) => {
    const lines = Object.entries(values).map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`);
    return `[${kind}.${JSON.stringify(name)}]\n${lines.join('')}`;
  };
  const processes = [{ workspace: 'counting', command: ['sh', here('counting-agent.sh')] }, ...cases];
  return [
    server,
    '[engine]\nsweep_interval = "1s"\nshutdown_grace = "1s"\n',
    table('workspaces', 'default', { dir, agent: 'demo', slots: 100 }),
    ...processes.map(({ workspace: name, command }) => table('agents', name, { driver: 'openclaw', command })),
    ...processes.map(({ workspace: name }) => table('workspaces', name, { dir, agent: name, slots: 1 })),
  ].join('\n');
}

const bin = resolve(options.bin ?? newestBinary());
const cases = findCases(resolve(options.cases));
const only = new RegExp(options.only);
const read = options.streams ? streams(options.streams) : [];
const every = [...recorded(cases), ...read, ...readme, ...live, ...send, ...wire, ...permissions, ...failure, ...refusals];
const checks = every.filter((check) => only.test(check.name));
if (checks.length === 0) throw new Error(`no check has a name that ${only} matches`);
const root = await mkdtemp(join(tmpdir(), 'mainstay-clients-'));
const daemons = [];
const failures = [];

async function startDaemon(server) {
  const dir = join(root, String(daemons.length + 1));
  const daemon = await Daemon.start(bin, dir, configOf(cases, root, server));
  daemons.push(daemon);
  return daemon;
}

async function run(check, index, daemon) {
  const started = performance.now();
  const scene = { api: daemon.api, startDaemon, id: `check-${index + 1}` };
  let error;
  try {
    await within(check.run(scene), 'the check', CHECK_DEADLINE);
  } catch (thrown) {
    error = thrown;
    failures.push(check.name);
  }
  console.log(`${error ? 'FAIL' : 'ok  '} ${check.name} (${Math.round(performance.now() - started)} ms)`);
  if (error) console.log(indented(explained(error)));
}

function explained(error) {
  const cause = error?.cause instanceof Error ? `: ${error.cause.message}` : '';
  const [message, ...diff] = `${error?.message ?? error}${cause}`.split('\n');
  const place = /checks\/[^)\n]*/.exec(error?.stack ?? '')?.[0];
  return [message, ...diff.slice(0, 40), ...(place ? [`at ${place}`] : [])].join('\n');
}

const indented = (text) => text.replace(/^/gm, '       ');

try {
  const daemon = await startDaemon();
  const numbered = checks.map((check, index) => [check, index]);
  const slow = numbered.filter(([check]) => check.isSlow).map(([check, index]) => run(check, index, daemon));
  for (const [check, index] of numbered.filter(([check]) => !check.isSlow)) await run(check, index, daemon);
  await Promise.all(slow);
  if (!daemon.isRunning) failures.push('the daemon, which ended by itself');
  if (failures.length > 0) console.log(`what the daemon said last:\n${indented(await daemon.log())}`);
} finally {
  await Promise.allSettled(daemons.map((daemon) => daemon.stop()));
  await rm(root, { recursive: true, force: true });
}

console.log(failures.length > 0
  ? `${failures.length} of ${checks.length} checks failed:\n${failures.map((name) => `  ${name}`).join('\n')}`
  : `all ${checks.length} checks passed`);
process.exit(failures.length > 0 ? 1 : 0);
