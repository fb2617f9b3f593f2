//! Manual pages and completions, from the command line as clap knows it.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use miaf_agent::cli::Cli;

fn command() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// One page for the command, and one for each of its commands.
pub(crate) fn write_pages(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command(), folder)
}

/// Where each shell looks for them.
pub(crate) fn write_completions(share: &Path) -> io::Result<()> {
    for (shell, file) in [
        (Shell::Bash, "bash-completion/completions/miaf-agent"),
        (Shell::Zsh, "zsh/vendor-completions/_miaf-agent"),
        (Shell::Fish, "fish/vendor_completions.d/miaf-agent.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), "miaf-agent", &mut text);
        let file = share.join(file);
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(file, text)?;
    }
    Ok(())
}
