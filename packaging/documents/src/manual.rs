//! Manual pages and completions. Options and descriptions come from the command line as clap knows
//! it; files, exit statuses and examples from `man/*.roff`; miaf-agent.toml(5) from
//! `docs/configuration.md`.

use std::error::Error;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use miaf_agent::cli::Cli;

use crate::markdown;

const NAME: &str = "miaf-agent";
const MANUAL: &str = "Device identity";
const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");
const README: &str = include_str!("../../../README.md");

/// What follows OPTIONS on the page of each command; the first is the page of the program itself.
const SECTIONS: [(&str, &str); 15] = [
    (NAME, include_str!("../man/miaf-agent.roff")),
    ("run", include_str!("../man/run.roff")),
    ("status", include_str!("../man/status.roff")),
    ("svid", include_str!("../man/svid.roff")),
    ("bundle", include_str!("../man/bundle.roff")),
    ("watch", include_str!("../man/watch.roff")),
    ("wait", include_str!("../man/wait.roff")),
    ("retry", include_str!("../man/retry.roff")),
    ("renew", include_str!("../man/renew.roff")),
    ("csr", include_str!("../man/csr.roff")),
    ("install", include_str!("../man/install.roff")),
    ("enroll", include_str!("../man/enroll.roff")),
    ("check-config", include_str!("../man/check-config.roff")),
    ("notify", include_str!("../man/notify.roff")),
    ("retire", include_str!("../man/retire.roff")),
];

fn command() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// Writes miaf-agent(1), a page for each of its commands, and miaf-agent.toml(5).
pub(crate) fn write_pages(man: &Path, epoch: u64) -> Result<(), Box<dyn Error>> {
    let date = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(epoch)).to_string();
    let date = date.split('T').next().unwrap_or_default();
    let program = command();
    let source = format!("{NAME} {}", program.get_version().unwrap_or_default());
    let section_1 = man.join("man1");
    fs::create_dir_all(&section_1)?;
    for command in [&program].into_iter().chain(program.get_subcommands()) {
        let sections = SECTIONS.iter().find(|(name, _)| *name == command.get_name());
        let (_, sections) = sections.ok_or_else(|| format!("man/{}.roff is missing", command.get_name()))?;
        let title = command.get_display_name().unwrap_or(NAME).to_owned();
        let page = Man::new(command.clone()).date(date).source(&source).manual(MANUAL);
        let mut text = Vec::new();
        page.render_title(&mut text)?;
        page.render_name_section(&mut text)?;
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        if command.has_subcommands() {
            page.render_subcommands_section(&mut text)?;
        }
        text.write_all(sections.as_bytes())?;
        see_also(&others(&program, &title)).to_writer(&mut text)?;
        fs::write(section_1.join(format!("{title}.1")), text)?;
    }

    let section_5 = man.join("man5");
    fs::create_dir_all(&section_5)?;
    fs::write(section_5.join("miaf-agent.toml.5"), configuration(date, &source)?)?;
    Ok(())
}

/// The pages that the page of this title refers to: the program's all others, a command's the
/// program's.
fn others(program: &Command, title: &str) -> Vec<(String, &'static str)> {
    let commands = program.get_subcommands().filter_map(Command::get_display_name);
    let mut pages: Vec<(String, &str)> = match title {
        NAME => commands.map(|name| (name.to_owned(), "1")).collect(),
        "miaf-agent-run" => vec![(NAME.into(), "1"), ("systemd.service".into(), "5")],
        "miaf-agent-status" => vec![(NAME.into(), "1"), ("miaf-agent-watch".into(), "1")],
        _ => vec![(NAME.into(), "1"), ("miaf-agent-status".into(), "1")],
    };
    pages.push(("miaf-agent.toml".into(), "5"));
    pages
}

fn see_also(pages: &[(String, &str)]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut text = Vec::new();
    for (name, section) in pages {
        let end = if text.is_empty() { "" } else { ", " };
        text.extend([roman(end), bold(name), roman(format!("({section})"))]);
    }
    roff.text(text);
    roff
}

/// miaf-agent.toml(5): the page of the documentation, with what a manual page has in addition.
fn configuration(date: &str, source: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut roff = Roff::new();
    roff.control("TH", ["miaf-agent.toml", "5", date, source, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("miaf-agent.toml - configuration of the identity agent")]);
    roff.control("SH", ["SYNOPSIS"]);
    for file in ["/etc/miaf-agent/config.toml", "/etc/miaf-agent/config.d/*.toml"] {
        roff.text([bold(file)]);
        roff.control("br", []);
    }
    roff.control("SH", ["DESCRIPTION"]);
    markdown::render(CONFIGURATION, &mut roff);
    roff.control("SH", ["EXAMPLES"]);
    roff.text([roman("The shortest configuration of a device with files:")]);
    let example = README.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    markdown::code(example.ok_or("README.md has no block of TOML")?, &mut roff);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    see_also(&[(NAME.into(), "1"), ("miaf-agent-run".into(), "1")]).to_writer(&mut text)?;
    Ok(text)
}

/// Where each shell looks for them.
pub(crate) fn write_completions(share: &Path) -> io::Result<()> {
    for (shell, file) in [
        (Shell::Bash, "bash-completion/completions/miaf-agent"),
        (Shell::Zsh, "zsh/vendor-completions/_miaf-agent"),
        (Shell::Fish, "fish/vendor_completions.d/miaf-agent.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command(), NAME, &mut text);
        if let Shell::Bash = shell {
            text = with_reachable_commands(&String::from_utf8_lossy(&text)).into();
        }
        let file = share.join(file);
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(file, text)?;
    }
    Ok(())
}

/// A hyphen in the name of the program is one thing where the script of clap_complete finds the
/// command, and another where it offers that command's options
/// (github.com/clap-rs/clap/issues/6421): the second is never reached. Does nothing once that is
/// mended.
fn with_reachable_commands(script: &str) -> String {
    script.replace("miaf__subcmd__agent__subcmd__", "miaf__agent__subcmd__")
}
