// Waiting for something that must happen, with a deadline that only a failure reaches.

export const DEADLINE = 30_000;

/** The promise's value, or an error that says what did not happen. */
export async function within(promise, what, deadline = DEADLINE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: did not happen within ${deadline / 1000} s`)), deadline);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Asks again and again until the answer is one: anything but `undefined`. */
export async function eventually(ask, what, deadline = DEADLINE) {
  const end = Date.now() + deadline;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (Date.now() > end) throw new Error(`${what}: did not happen within ${deadline / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
