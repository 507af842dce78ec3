//! The bridge to an ACP agent and the relays of turns to it, as processes, with an agent that follows its prompts.

mod asking;
mod cancel;
mod client;
mod hostile;
mod scene;
mod sessions;
mod starting;
