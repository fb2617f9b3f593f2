//! The MIS behind a real proxy (tinyproxy): through it, around it, and what is said when it is in the way.
