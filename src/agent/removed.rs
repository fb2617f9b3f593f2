//! Identities that the configuration does not have any more. Each is retired: its files are
//! withdrawn, also where an earlier configuration of this process published them, and its records
//! are moved away. What fails is shown in the status, and tried again.

use std::path::PathBuf;

use super::blocking;
use super::executor::Executor;
use super::reporting::cause;
use super::restore::identity_files;
use crate::config::{Config, FilesConfig, IdentityConfig};
use crate::platform::clock;
use crate::problem::{LastError, ProblemCode, Report};
use crate::publish::files::{PublishError, Publisher};
use crate::state::{Store, StoreError};
use miaf_client::api::IdentityName;

/// The published files of an identity, of which only their location is known to the next
/// configuration.
#[derive(Clone)]
pub(super) struct FormerFiles {
    name: IdentityName,
    publisher: Publisher,
}

/// An identity that is not configured any more, until it is retired.
pub(super) struct RemovedIdentity {
    name: IdentityName,
    /// The publishers of files that are not withdrawn yet.
    publishers: Vec<Publisher>,
    /// Why it could not be retired.
    problem: Option<LastError>,
}

impl RemovedIdentity {
    /// The identities that a configuration does not have: those with records, and those with files
    /// that the configuration before it published.
    pub(super) fn all(config: &Config, stored: &[IdentityName], former: Vec<FormerFiles>) -> Vec<Self> {
        let is_configured = |name: &IdentityName| config.identities.iter().any(|known| known.name == *name);
        let removed = |name: &IdentityName| Self {
            name: name.clone(),
            publishers: vec![publisher(name, &config.files)],
            problem: None,
        };
        let stored = stored.iter().filter(|name| !is_configured(name));
        let mut all: Vec<_> = stored.map(removed).collect();
        for FormerFiles { name, publisher } in former {
            if is_configured(&name) {
                continue; // it is back, and its files are its own again
            }
            match all.iter_mut().find(|removed| removed.name == name) {
                Some(removed) if removed.publishers.iter().any(|one| one.is_at_the_place_of(&publisher)) => {}
                Some(removed) => removed.publishers.push(publisher),
                None => all.push(Self { name, publishers: vec![publisher], problem: None }),
            }
        }
        all
    }

    /// Retires it. Returns whether it is retired.
    async fn retire(&mut self, store: &Store) -> bool {
        let (store, name) = (store.clone(), self.name.clone());
        let mut publishers = std::mem::take(&mut self.publishers);
        let (publishers, outcome) = blocking(move || {
            let outcome = withdraw(&mut publishers)
                .map_err(|e| not_withdrawn(&name, &e))
                .and_then(|()| move_away(&store, &name).map_err(|e| not_moved(&name, &e)));
            (publishers, outcome)
        })
        .await;
        self.publishers = publishers;
        let identity = self.name.as_str();
        match outcome {
            Ok(stored_in) => {
                let stored_in = stored_in.map(|dir| dir.display().to_string());
                tracing::warn!(
                    identity,
                    stored_in,
                    "identity retired: it is not in the configuration any more"
                );
                true
            }
            Err(report) => {
                if self.problem.as_ref().is_none_or(|known| known.report != report) {
                    tracing::error!(
                        identity,
                        code = report.code.as_str(),
                        hint = report.hint(),
                        "{}",
                        cause(&report.message())
                    );
                    self.problem = Some(LastError { report, at: clock::now().wall, permanent: true });
                }
                false
            }
        }
    }
}

impl Executor {
    /// Retires the identities that are not configured any more. Those that cannot be retired now
    /// stay in [`removed`](Self::removed).
    pub(super) async fn retire_removed(&mut self) {
        let mut left = Vec::new();
        for mut removed in std::mem::take(&mut self.removed) {
            if !removed.retire(&self.records.store).await {
                left.push(removed);
            }
        }
        self.removed = left;
    }

    /// Why an identity that was removed is not retired yet.
    pub(super) fn removal_problem(&self) -> Option<&LastError> {
        self.removed.iter().find_map(|removed| removed.problem.as_ref())
    }

    /// The files of the identities that the next configuration may not have, where it would not look
    /// for them: in directories of this configuration, or of those before it.
    pub(super) fn former_files(&self, next: &Config) -> Vec<FormerFiles> {
        let here = &self.config.files;
        let has_moved = here.dir != next.files.dir || here.software_key_dir != next.files.software_key_dir;
        let published = self.identities.iter().filter(|_| has_moved);
        let published = published.map(|identity| FormerFiles {
            name: identity.name.clone(),
            publisher: identity.publisher.clone(),
        });
        let removed = self.removed.iter().flat_map(|removed| {
            let publishers = removed.publishers.iter().cloned();
            publishers.map(|publisher| FormerFiles { name: removed.name.clone(), publisher })
        });
        published.chain(removed).collect()
    }
}

/// The publisher of an identity of which nothing is configured but where files are published.
fn publisher(name: &IdentityName, files: &FilesConfig) -> Publisher {
    Publisher::new(files, &identity_files(&IdentityConfig::stored(name.clone())))
}

/// Withdraws what these have published; those that are done leave. Returns the first error.
fn withdraw(publishers: &mut Vec<Publisher>) -> Result<(), PublishError> {
    let mut outcome = Ok(());
    publishers.retain_mut(|publisher| match publisher.withdraw() {
        Ok(()) => false,
        Err(e) => {
            if outcome.is_ok() {
                outcome = Err(e);
            }
            true
        }
    });
    outcome
}

/// Moves the records of an identity away, if there are any, and returns where they are then.
fn move_away(store: &Store, name: &IdentityName) -> Result<Option<PathBuf>, StoreError> {
    match store.identities()?.contains(name) {
        true => store.of(name).retire(false).map(Some),
        false => Ok(None),
    }
}

fn not_withdrawn(name: &IdentityName, e: &PublishError) -> Report {
    let title = format!("The files of the removed identity \"{name}\" could not be withdrawn");
    let report = Report::of(ProblemCode::NotPublished, &title, e);
    let hint = report.hint.clone().unwrap_or_else(|| {
        "Correct what the error names, or delete the files by hand; the agent tries again by itself"
            .to_owned()
    });
    report.with_hint(Some(hint))
}

fn not_moved(name: &IdentityName, e: &StoreError) -> Report {
    let title = format!("The removed identity \"{name}\" could not be retired");
    Report::of(ProblemCode::State, &title, e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn name(text: &str) -> IdentityName {
        IdentityName::parse(text).unwrap()
    }

    fn files(dir: &Path) -> FilesConfig {
        let text = format!("[files]\ndir = {dir:?}\n");
        Config::parse(&text, Path::new("/etc/miaf-agent/config.toml"), None).unwrap().files
    }

    /// Publishes something in the way of the agent, without an agent.
    fn published(dir: &Path, name: &str) {
        fs::create_dir_all(dir.join(name).join("1")).unwrap();
        std::os::unix::fs::symlink("1", dir.join(name).join("current")).unwrap();
    }

    #[tokio::test]
    async fn removed_identity_is_retired_once_its_files_can_be_withdrawn() {
        let directory = tempfile::tempdir().unwrap();
        let [here, there] = ["here", "there"].map(|name| directory.path().join(name));
        let store = Store::new(&directory.path().join("state"));
        let records = store.private().join("identities/gateway");
        fs::create_dir_all(&records).unwrap();
        published(&here, "gateway");
        published(&there, "gateway");
        // Root may write everywhere, but unlinks no directory.
        let in_the_way = here.join("gateway/current");
        fs::remove_file(&in_the_way).unwrap();
        fs::create_dir(&in_the_way).unwrap();
        let mut removed = RemovedIdentity {
            name: name("gateway"),
            publishers: [&here, &there].map(|dir| publisher(&name("gateway"), &files(dir))).to_vec(),
            problem: None,
        };
        for _ in 0..2 {
            assert!(!removed.retire(&store).await);
            let problem = removed.problem.clone().unwrap().report;
            assert_eq!(problem.code, ProblemCode::NotPublished);
            assert!(problem.message().contains("\"gateway\"") && problem.hint().is_some(), "{problem:?}");
            assert!(!there.join("gateway/current").exists(), "one error does not keep the others back");
            assert!(records.exists() && removed.publishers.len() == 1);
        }
        fs::remove_dir(&in_the_way).unwrap();
        assert!(removed.retire(&store).await);
        assert!(!records.exists() && store.private().join("retired-1-gateway").exists());
        assert!(!here.join("gateway/1").exists());
    }

    #[test]
    fn removed_identity_is_one_of_the_store_or_of_former_files() {
        let text = "[[identity]]\nname = \"line\"\nenroll = \"manual\"\n";
        let config = Config::parse(text, Path::new("/etc/miaf-agent/config.toml"), None).unwrap();
        let former = |of: &str, dir: &Path| FormerFiles {
            name: name(of),
            publisher: publisher(&name(of), &files(dir)),
        };
        let stored = [name("gateway"), name("line")];
        // Those of many reloads are no more than the directories that they are in.
        let (here, there) = (config.files.dir.clone(), PathBuf::from("/srv/svid"));
        let of_gateway = [&here, &there, &there].map(|dir| former("gateway", dir));
        let former =
            of_gateway.into_iter().chain(["line", "other"].map(|name| former(name, &there))).collect();
        let all = RemovedIdentity::all(&config, &stored, former);
        let all: Vec<_> = all.iter().map(|is| (is.name.as_str(), is.publishers.len())).collect();
        assert_eq!(all, [("gateway", 2), ("other", 1)]);
    }
}
