//! As much of `reqwest` as the client of `est-ca` needs to compile. Only the server is run here, and the real
//! one would bring a hundred crates and OpenSSL.

use std::fmt::{self, Display};

pub struct Client;
pub struct RequestBuilder;
pub enum Response {}
pub enum StatusCode {}

/// Every request ends so.
#[derive(Debug)]
pub struct Error;

impl Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("this client sends nothing")
    }
}

impl std::error::Error for Error {}

pub mod header {
    pub const CONTENT_TYPE: &str = "content-type";
}

impl Client {
    pub fn get(&self, _: String) -> RequestBuilder {
        RequestBuilder
    }

    pub fn post(&self, _: String) -> RequestBuilder {
        RequestBuilder
    }
}

impl RequestBuilder {
    pub fn basic_auth(self, _: &str, _: Option<&str>) -> Self {
        self
    }

    pub fn header(self, _: &str, _: &str) -> Self {
        self
    }

    pub fn body(self, _: String) -> Self {
        self
    }

    pub async fn send(self) -> Result<Response, Error> {
        Err(Error)
    }
}

impl Response {
    pub fn status(&self) -> StatusCode {
        match *self {}
    }

    pub async fn text(self) -> Result<String, Error> {
        match self {}
    }
}

impl StatusCode {
    pub fn is_success(&self) -> bool {
        match *self {}
    }
}

impl Display for StatusCode {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
