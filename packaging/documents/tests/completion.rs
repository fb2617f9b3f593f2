//! The completions complete: bash is asked what it offers, for every command.

mod common;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory as _;
use common::{Documents, Outcome};
use miaf_agent::cli::Cli;

/// Calls what `complete -p` names for the program as bash does, on the words given as arguments.
const BASH: &str = r#"
set -eu
source "$1"; shift
declared=$(complete -p miaf-agent)
[[ $declared =~ -F\ ([^ ]+) ]]
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE}
"${BASH_REMATCH[1]}" miaf-agent "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// What bash offers for the last of these words.
fn offered(script: &Path, words: &[&str]) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let output = Command::new("bash")
        .args(["--norc", "--noprofile", "-c", BASH, "bash"])
        .arg(script)
        .arg("miaf-agent")
        .args(words)
        .output()?;
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn bash_completes_every_command_and_its_options() -> Outcome {
    let documents = Documents::make()?;
    let script = documents.share().join("bash-completion/completions/miaf-agent");
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let commands: BTreeSet<String> = program.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    assert!(commands.contains("retire"), "{commands:?}");

    assert_eq!(offered(&script, &["sta"])?, set(&["status"]));
    assert_eq!(offered(&script, &["re"])?, set(&["renew", "retire", "retry"]));
    assert!(offered(&script, &[""])?.is_superset(&commands));
    assert!(offered(&script, &["--config", "a.toml", ""])?.is_superset(&commands));

    for command in program.get_subcommands() {
        let options: BTreeSet<String> = command
            .get_arguments()
            .filter_map(|one| one.get_long())
            .map(|long| format!("--{long}"))
            .collect();
        assert!(options.contains("--config"), "{options:?}");
        let name = command.get_name();
        assert_eq!(offered(&script, &[name, "--"])?, options, "{name} --");
        assert_eq!(
            offered(&script, &["--config", "a.toml", name, "--"])?,
            options,
            "--config a.toml {name} --"
        );
        assert_eq!(
            offered(&script, &[name, "--config", "a.toml", "--"])?,
            options,
            "{name} --config a.toml --"
        );
    }
    Ok(())
}

#[test]
fn bash_completes_values() -> Outcome {
    let documents = Documents::make()?;
    let script = documents.share().join("bash-completion/completions/miaf-agent");
    assert_eq!(offered(&script, &["wait", "--for", ""])?, set(&["bundle", "svid"]));
    assert_eq!(offered(&script, &["wait", "--json", "--for", "b"])?, set(&["bundle"]));
    // A file, by a prefix of its path.
    let path = script.to_str().ok_or("a path that is not text")?;
    let prefix = path.strip_suffix("agent").ok_or("another name")?;
    assert_eq!(offered(&script, &["--config", prefix])?, set(&[path]));
    assert_eq!(offered(&script, &["status", "--json", "--socket", prefix])?, set(&[path]));
    Ok(())
}

#[test]
fn zsh_and_fish_know_every_command_and_option() -> Outcome {
    let documents = Documents::make()?;
    let zsh = std::fs::read_to_string(documents.share().join("zsh/vendor-completions/_miaf-agent"))?;
    let fish = std::fs::read_to_string(documents.share().join("fish/vendor_completions.d/miaf-agent.fish"))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    for command in program.get_subcommands() {
        let name = command.get_name();
        assert!(zsh.contains(&format!("({name})\n")), "zsh: {name}");
        for long in command.get_arguments().filter_map(|one| one.get_long()) {
            let line = fish.lines().find(|line| {
                line.contains(&format!("__fish_miaf_agent_using_subcommand {name}\""))
                    && line.contains(&format!("-l {long} "))
            });
            assert!(
                line.is_some() || fish.contains(&format!("using_subcommand {name}\" -l {long}\n")),
                "fish: {name} --{long}"
            );
        }
    }
    Ok(())
}
