//! Turns that go to an OpenClaw gateway, through real relays under real shims; the gateway is a fake that says what a
//! real one was recorded to say.

mod engine;
mod faults;
mod recorded;
mod scene;
mod turns;
