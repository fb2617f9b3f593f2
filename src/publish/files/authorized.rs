//! `authorized.json`: the peers with which a WFM Client may speak, in the form that released clients
//! read. It is directly in the directory of the identity, and replaced by a rename: such a client
//! watches the directory that has the file, and a swapped symlink on the way goes unnoticed.

use std::ffi::OsStr;
use std::io;

use super::generations::matches_file;
use crate::platform::dir::Dir;
use miaf_spiffe::svid::X509Svid;

const NAME: &str = "authorized.json";
/// Replaces [`NAME`]. What a power cut leaves of it is removed with torn generations.
const NEXT: &str = ".authorized.json.new";
const MODE: u32 = 0o640;

/// The content of `authorized.json`: a JSON array with the one WFM of a WFM Client. No blank follows
/// it: readers are not sure to take one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authorized(String);

impl Authorized {
    /// The WFM whose client the SVID names. `None`: it names no WFM Client.
    pub(super) fn of(svid: &X509Svid) -> Option<Self> {
        let wfm = svid.spiffe_id().wfm_of_client()?;
        Some(Self(serde_json::json!([wfm.to_string()]).to_string()))
    }
}

/// Makes `authorized.json` in a directory be this, or be absent. One that is as it should be is not
/// touched.
pub(super) fn put(dir: &Dir, authorized: Option<&Authorized>, group: Option<u32>) -> io::Result<()> {
    let Some(Authorized(content)) = authorized else { return remove(dir) };
    let (name, next) = (OsStr::new(NAME), OsStr::new(NEXT));
    if matches_file(dir, name, content.as_bytes(), MODE, group) {
        return Ok(());
    }
    dir.remove_all(next)?;
    dir.write_new(next, content.as_bytes(), MODE, group)?;
    // A rename replaces no directory.
    if dir.open_dir(name).is_ok() {
        dir.remove_all(name)?;
    }
    dir.rename(next, name)?;
    dir.sync()
}

/// Removes `authorized.json`.
pub(super) fn remove(dir: &Dir) -> io::Result<()> {
    dir.remove_all(OsStr::new(NAME))?;
    dir.remove_all(OsStr::new(NEXT))
}
