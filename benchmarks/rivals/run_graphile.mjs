// graphile-worker, as its documentation has it for throughput: a local queue, and completion in batches.
// The protocol is told in _protocol.py.

import { createRequire } from "node:module";
import readline from "node:readline";
import { readFileSync } from "node:fs";

const require = createRequire(process.env.RIVALS_NODE + "/");
const { run, makeWorkerUtils, Logger, runMigrations } = require("graphile-worker");
const { Pool } = require("pg");
const version = (name) => JSON.parse(readFileSync(`${process.env.RIVALS_NODE}/node_modules/${name}/package.json`)).version;

const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => (await lines.next()).value;
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const now = () => Number(process.hrtime.bigint()) / 1e9; // the monotonic clock, as Python's
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const order = JSON.parse(await next());
const text = "x".repeat(Math.max(0, order.payload - '{"text":""}'.length));
const quiet = new Logger(() => () => {});
let count = 0;
let began = 0;
let ended = 0;
let cpu;
const first = Math.min(30, 5 * order.lull); // seconds in which the first job of a drain has begun, as in _protocol.py
const moments = [];

const go = async () => {
  say({ ready: true });
  await next();
  lines.next().then(({ done }) => done && process.exit(1)); // nobody waits for the answer any more
  began = ended = now();
  cpu = process.cpuUsage();
};

const answer = (settings) => {
  const { user, system } = process.cpuUsage(cpu);
  say({
    count, began, ended, closed: now(), cpu: (user + system) / 1e6, rss: process.memoryUsage().rss,
    moments, settings,
    versions: { node: process.versions.node, "graphile-worker": version("graphile-worker"), pg: version("pg") },
  });
};

// Its local queue takes 500 jobs at a time: with a neighbour, a worker may see none of the few that there are.
const over = () => {
  if (!count) return now() - ended > first;
  if (order.limit !== null && now() - began >= order.limit) return true;
  return count >= order.jobs || now() - ended > order.lull;
};

const note = () => {
  if (count === 0) began = now();
  count += 1;
  ended = now();
};

const connections = Math.max(10, Math.min(order.concurrency + 1, 25)); // its performance page has 25 for 24 jobs at once
const settings = `localQueue.size=500, completeJobBatchDelay=0, failJobBatchDelay=0, maxPoolSize=${connections}`;
const start = (pgPool) =>
  run({
    pgPool,
    concurrency: order.concurrency,
    noHandleSignals: true,
    logger: quiet,
    taskList: { noop: async () => note(), noted: async ({ number }) => { moments.push([number, now()]); count += 1; } },
    preset: {
      worker: {
        concurrentJobs: order.concurrency,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
  });

const roles = {
  async fill() {
    const pool = new Pool({ connectionString: order.dsn, max: 10 });
    const utils = await makeWorkerUtils({ pgPool: pool, logger: quiet });
    await utils.migrate();
    await go();
    for (let done = 0; done < order.jobs; done += order.chunk) {
      const size = Math.min(order.chunk, order.jobs - done);
      await utils.addJobs(Array.from({ length: size }, () => ({ identifier: "noop", payload: { text } })));
    }
    count = order.jobs;
    ended = now();
    answer("addJobs(lists of 10,000)");
  },
  async dispatch() {
    const pool = new Pool({ connectionString: order.dsn, max: Math.max(order.callers, 1) });
    const utils = await makeWorkerUtils({ pgPool: pool, logger: quiet });
    await utils.migrate();
    await Promise.all(Array.from({ length: order.callers }, () => utils.addJob("noop", { text })));
    await go();
    let left = order.jobs;
    const caller = async () => {
      while (left > 0) {
        left -= 1;
        await utils.addJob("noop", { text });
      }
    };
    await Promise.all(Array.from({ length: order.callers }, caller));
    count = order.jobs;
    ended = now();
    answer(`a pool with ${order.callers} connections`);
  },
  async drain() {
    const pool = new Pool({ connectionString: order.dsn, max: connections });
    await runMigrations({ pgPool: pool, logger: quiet });
    await go();
    const runner = await start(pool);
    while (!over()) await sleep(0.01);
    await runner.stop();
    answer(settings);
  },
  async work() {
    const pool = new Pool({ connectionString: order.dsn, max: connections });
    await runMigrations({ pgPool: pool, logger: quiet });
    const runner = await start(pool);
    await go();
    ended = now();
    await runner.stop();
    answer(settings);
  },
  async pace() {
    const pool = new Pool({ connectionString: order.dsn, max: 2 });
    const utils = await makeWorkerUtils({ pgPool: pool, logger: quiet });
    await utils.migrate();
    await go();
    for (let number = 0; number < order.jobs; number += 1) {
      await sleep((0.5 + Math.random()) * order.pause);
      moments.push([number, now()]);
      await utils.addJob("noted", { number });
    }
    count = order.jobs;
    ended = now();
    answer("");
  },
};

await roles[order.role]();
process.exit(0);
