//! How clients identify themselves: users by password, and names by certificate.
//!
//! Owns the files behind it, which are read again when they change. Does not decide what anybody may do.

mod certificate;
mod tls;
mod turns;
mod users;

pub use certificate::names;
pub use tls::{ProxyTls, TlsFiles};
pub use turns::ClientQueues;
pub use users::{Pass, Users, UsersFile};
