//! The guest link, host side: one task per VM that holds the channel and feeds the pure [`session::Session`].

mod serial;
mod session;

pub use serial::{BanList, LinkEvent, LinkHandle, LinkOptions, Verdict, open};
pub use session::{MAX_BOOTS, Session, Step};
