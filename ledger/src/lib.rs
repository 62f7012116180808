//! Vestigo.
