//! Turns that are taken to an OpenClaw gateway, by real relays under real hosts; the gateway is a stand-in that says what a
//! real one was recorded to say.

mod engine;
mod faults;
mod recorded;
mod scene;
mod turns;
