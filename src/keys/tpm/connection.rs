//! The connection to the TPM, opened at first use and after a failure.

use tss_esapi::Context;
use tss_esapi::interface_types::session_handles::AuthSession;

use super::error::TpmError;
use super::response_code::{During, Failure, Step};
use super::tcti::Tcti;

/// A connection that is opened when it is needed.
pub(super) struct Connection {
    tcti: Tcti,
    context: Option<Context>,
}

impl Connection {
    pub(super) fn new(tcti: Tcti) -> Self {
        Self { tcti, context: None }
    }

    /// Runs an operation; once more on a fresh connection, if the connection failed or the TPM was
    /// reset.
    pub(super) fn run<T>(
        &mut self,
        operation: &impl Fn(&mut Context) -> Result<T, Failure>,
    ) -> Result<T, TpmError> {
        self.attempt(operation)
            .or_else(|failure| if failure.is_transient() { self.attempt(operation) } else { Err(failure) })
            .map_err(|failure| failure.into_error(&self.tcti))
    }

    fn attempt<T>(&mut self, operation: &impl Fn(&mut Context) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut context = match self.context.take() {
            Some(context) => context,
            None => self.open().during(Step::Open)?,
        };
        let done = operation(&mut context);
        // After any failure the context is dropped, which flushes what may be left in the TPM.
        if done.is_ok() {
            self.context = Some(context);
        }
        done
    }

    fn open(&self) -> tss_esapi::Result<Context> {
        let mut context = Context::new(self.tcti.to_tss()?)?;
        // Objects have no password unless one is set, and the TPM expects an empty one then.
        context.set_sessions((Some(AuthSession::Password), None, None));
        Ok(context)
    }
}
