//! The same flows for nfdump.
