//! Objects of the suite in the TPM: keys at persistent handles, certificates in NV indices. Only at
//! numbers that no profile assigns, and removed when dropped.

use miaf_agent::keys::tpm::Tcti;
use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::PropertyTag;
use tss_esapi::handles::{KeyHandle, NvIndexTpmHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::structures::{MaxNvBuffer, NvPublicBuilder, Public};

use crate::Failure;
use crate::connection::{self, During};

/// In the range that is the owner's, away from the numbers that TCG profiles give a meaning.
pub(crate) const HANDLE: u32 = 0x8170_4857;
/// In the range that is the owner's.
pub(crate) const INDEX: u32 = 0x01b0_4857;

/// Fails if the numbers are taken. What is there may be in use, so it is not touched.
pub(crate) fn refuse_if_in_the_way(tcti: &Tcti) -> Result<(), Failure> {
    let mut context = connection::open(tcti)?;
    for place in [Place::Handle, Place::Index] {
        if place.is_taken(&mut context)? {
            return Err(format!(
                "the TPM holds something at {:#010x} already, which this suite would use; if an earlier run was killed \
                 and left it there, remove it with: {}",
                place.number(),
                place.remedy(),
            )
            .into());
        }
    }
    Ok(())
}

/// Something in the TPM that goes away with this value.
pub(crate) struct Stored<'a> {
    tcti: &'a Tcti,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Handle,
    Index,
}

impl<'a> Stored<'a> {
    /// Makes a primary key of the owner and keeps it at [`HANDLE`].
    pub(crate) fn key(tcti: &'a Tcti, template: Public) -> Result<Self, Failure> {
        let mut context = connection::open(tcti)?;
        let key = context
            .create_primary(Hierarchy::Owner, template, None, None, None, None)
            .during("CreatePrimary")?
            .key_handle;
        Self::loaded_key(tcti, &mut context, key)
    }

    /// Keeps a key at [`HANDLE`] that is loaded.
    pub(crate) fn loaded_key(tcti: &'a Tcti, context: &mut Context, key: KeyHandle) -> Result<Self, Failure> {
        context.evict_control(Provision::Owner, key.into(), persistent()?).during("EvictControl")?;
        Ok(Self { tcti, place: Place::Handle })
    }

    /// Writes to [`INDEX`], which anybody may read.
    pub(crate) fn content(tcti: &'a Tcti, content: &[u8]) -> Result<Self, Failure> {
        let mut context = connection::open(tcti)?;
        let attributes = NvIndexAttributesBuilder::new()
            .with_owner_write(true)
            .with_owner_read(true)
            .with_auth_read(true)
            .with_no_da(true)
            .build();
        let public = attributes.and_then(|attributes| {
            NvPublicBuilder::new()
                .with_nv_index(NvIndexTpmHandle::new(INDEX)?)
                .with_index_name_algorithm(HashingAlgorithm::Sha256)
                .with_index_attributes(attributes)
                .with_data_area_size(content.len())
                .build()
        });
        let index = public
            .and_then(|public| context.nv_define_space(Provision::Owner, None, public))
            .during("NV_DefineSpace")?;
        let persistent = Self { tcti, place: Place::Index };

        let most = connection::required(&mut context, PropertyTag::NvBufferMax)?;
        let most = usize::try_from(most)?.clamp(1, MaxNvBuffer::MAX_SIZE);
        let mut offset = 0;
        for piece in content.chunks(most) {
            MaxNvBuffer::try_from(piece)
                .and_then(|data| context.nv_write(NvAuth::Owner, index, data, offset))
                .during("NV_Write")?;
            offset += u16::try_from(piece.len())?;
        }
        Ok(persistent)
    }
}

impl Drop for Stored<'_> {
    fn drop(&mut self) {
        let removed = connection::open(self.tcti).and_then(|mut context| self.place.clear(&mut context));
        if let Err(error) = removed {
            let (number, remedy) = (self.place.number(), self.place.remedy());
            eprintln!(
                "hw-tests: cannot remove what is at {number:#010x} of the TPM: {error}; remove it with: {remedy}"
            );
        }
    }
}

impl Place {
    fn number(self) -> u32 {
        match self {
            Self::Handle => HANDLE,
            Self::Index => INDEX,
        }
    }

    fn remedy(self) -> String {
        match self {
            Self::Handle => format!("tpm2_evictcontrol -C o -c {HANDLE:#010x}"),
            Self::Index => format!("tpm2_nvundefine -C o {INDEX:#010x}"),
        }
    }

    fn is_taken(self, context: &mut Context) -> Result<bool, Failure> {
        let kind = match self {
            Self::Handle => connection::PERSISTENT,
            Self::Index => connection::NV,
        };
        Ok(connection::handles(context, kind)?.contains(&self.number()))
    }

    fn clear(self, context: &mut Context) -> Result<(), Failure> {
        let handle = match self {
            Self::Handle => PersistentTpmHandle::new(HANDLE).map(TpmHandle::Persistent),
            Self::Index => NvIndexTpmHandle::new(INDEX).map(TpmHandle::NvIndex),
        };
        let found = handle
            .and_then(|handle| context.execute_without_session(|context| context.tr_from_tpm_public(handle)))
            .during("looking it up")?;
        match self {
            Self::Handle => {
                context.evict_control(Provision::Owner, found, persistent()?).during("EvictControl").map(drop)
            }
            Self::Index => {
                context.nv_undefine_space(Provision::Owner, found.into()).during("NV_UndefineSpace")
            }
        }
    }
}

fn persistent() -> Result<Persistent, Failure> {
    PersistentTpmHandle::new(HANDLE).map(Persistent::from).during("the number of the handle")
}
