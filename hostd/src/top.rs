//! `hostd top`: the VMs of this hypervisor, as they are now.

mod screen;
mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

use clap::ValueEnum;

use crate::status::{self, Status, StatusError};
use screen::{Key, Screen};
pub use table::render;

/// What the VMs are sorted by, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sort {
    /// Packets per second both ways.
    #[default]
    Packets,
    /// Bytes per second both ways.
    Bytes,
    /// Flows held.
    Flows,
    /// What was lost.
    Lost,
    /// Contradictions and forged sources.
    Doubts,
    /// Name, first letter first.
    Name,
}

/// How it is shown.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The order.
    pub sort: Sort,
    /// Columns of the terminal; `None` for as many as it takes.
    pub width: Option<usize>,
    /// Lines of the terminal.
    pub height: Option<usize>,
    /// Whether to set the heading and doubtful VMs off.
    pub colour: bool,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// No document.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The terminal.
    #[error("the terminal cannot be used; try --once")]
    Terminal(#[from] io::Error),
}

/// Shows the table once, as text.
///
/// # Errors
/// [`TopError`].
pub fn once(socket: &Path, sort: Sort) -> Result<(), TopError> {
    let status = status::fetch(socket)?;
    let mut out = io::stdout().lock();
    let width = out.is_terminal().then(|| screen::size().0);
    let view = View { sort, width, height: None, colour: may_colour() && out.is_terminal() };
    Ok(out.write_all(render(&status, &view).as_bytes())?)
}

/// Prints the document itself.
///
/// # Errors
/// [`TopError`].
pub fn json(socket: &Path) -> Result<(), TopError> {
    let text = serde_json::to_string(&status::fetch(socket)?).map_err(StatusError::Answer)?;
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Shows the table until somebody has seen enough.
///
/// # Errors
/// [`TopError`].
pub fn live(socket: &Path, mut sort: Sort, every: Duration) -> Result<(), TopError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return once(socket, sort);
    }
    // Asked before the screen is taken, so that a mistake is shown where the command was given.
    let mut status = status::fetch(socket)?;
    let mut screen = Screen::enter()?;
    loop {
        let (columns, lines) = screen::size();
        let view = View { sort, width: Some(columns), height: Some(lines), colour: may_colour() };
        screen.show(&page(&status, &view))?;
        match screen.wait(every)? {
            Key::Quit => return Ok(()),
            Key::Sort => sort = next(sort),
            Key::Redraw => {}
            Key::None => status = status::fetch(socket)?,
        }
    }
}

fn page(status: &Status, view: &View) -> String {
    let mut page = render(status, view);
    let by = view.sort.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    page.push_str(&format!("by {by}; q quits, s sorts\n"));
    page
}

fn next(sort: Sort) -> Sort {
    let all = Sort::value_variants();
    let at = all.iter().position(|one| *one == sort).unwrap_or(0);
    all.get((at + 1) % all.len()).copied().unwrap_or_default()
}

fn may_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
