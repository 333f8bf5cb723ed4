//! A Unix socket that accepts connections: its file, and who may connect to it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Uid, chownat, flock, fstat, open},
    io::Errno,
    process::geteuid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use uzers::{get_group_by_name, get_user_by_name};

use super::listener::BACKLOG;
use crate::config::UnixSocket;

/// How often a process looks if another one is done, and how long it pauses between. Each is done within milliseconds.
const LOOKS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Unix {
    // It is removed before the socket closes: after that, another process may have put its own in the place.
    _file: SocketFile,
    listener: UnixListener,
    socket: UnixSocket,
}

impl Unix {
    /// Binds the socket in place of that of a process which has ended.
    ///
    /// # Errors
    /// If a living process listens there, if a file of another kind is in the place, or if the system refuses.
    pub fn bind(socket: &UnixSocket) -> io::Result<Self> {
        // Two processes that start at once must not take each other's new socket for one that was left behind.
        let _lock = lock(&socket.path)?;
        make_room(&socket.path)?;
        let bound = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        bound.bind(&SockAddr::unix(&socket.path)?)?;
        let made = made_at(&socket.path)?;
        let file = SocketFile::of(&socket.path, &made)?;
        // The system lets no process connect before the socket listens, so none connects that may not.
        allow(socket, &made)?;
        bound.listen(BACKLOG.into())?;
        bound.set_nonblocking(true)?;
        let listener = UnixListener::from_std(OwnedFd::from(bound).into())?;
        Ok(Self { _file: file, listener, socket: socket.clone() })
    }

    pub fn socket(&self) -> &UnixSocket {
        &self.socket
    }

    /// # Cancel safety
    /// Dropping this loses no connection.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(socket, _)| socket)
    }
}

/// Keeps other processes from making this socket until the result is dropped. The file of the lock stays beside the
/// socket. Only the server's user may open it: another one could hold the lock for ever.
fn lock(socket: &Path) -> io::Result<File> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    // A link may lead to a file of somebody else.
    let no_link = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link);
    let file = options.open(&path).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot open its lock file {}: {error}", path.display()))
    })?;
    for _ in 0..LOOKS {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
            // Also on a file system without locks.
            _ => return Ok(file),
        }
    }
    let why = format!("another process holds its lock file {}; end it", path.display());
    Err(io::Error::new(ErrorKind::TimedOut, why))
}

/// Removes the socket of a process that has ended.
fn make_room(path: &Path) -> io::Result<()> {
    let refuse = |kind, why: &str| Err(io::Error::new(kind, why));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return refuse(
                ErrorKind::AlreadyExists,
                "a file that is no socket has this name; remove it, or choose another path",
            );
        }
        Ok(_) => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A process with a full queue must not hold this one up.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        // A process that ends has just removed it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => refuse(ErrorKind::AddrInUse, "another process listens there; end it, or choose another path"),
    }
}

/// Opens the file of a socket that was just made, to change it and not to connect. Another user who may write in the folder
/// can put a link in its place: it is not followed, neither now nor later.
fn made_at(path: &Path) -> io::Result<OwnedFd> {
    let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&file)?;
    // One that another user has made would get the mode and the owner that were meant for ours.
    if FileType::from_raw_mode(found.st_mode) == FileType::Socket && found.st_uid == geteuid().as_raw() {
        return Ok(file);
    }
    let why = "another process has put something else in the place of the socket; choose a folder in which no other user may write";
    Err(io::Error::new(ErrorKind::AlreadyExists, why))
}

/// Sets who may connect.
fn allow(socket: &UnixSocket, made: &OwnedFd) -> io::Result<()> {
    let user = socket.user.as_deref().map(user_id).transpose()?;
    let group = socket.group.as_deref().map(group_id).transpose()?;
    if user.is_some() || group.is_some() {
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        chownat(made, c"", user, group, AtFlags::EMPTY_PATH).map_err(io::Error::from).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "cannot give it to this user or group: {error}; only root gives it to a user, and others only to \
                     a group of which they are members"
                ),
            )
        })?;
    }
    // Older systems change the mode of an open file without content only by this name of it.
    let name = format!("/proc/self/fd/{}", made.as_raw_fd());
    fs::set_permissions(&name, Permissions::from_mode(socket.mode)).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot set its mode by way of {name}: {error}"))
    })
}

fn user_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let user = get_user_by_name(name).map(|user| user.uid());
    user.ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("this machine has no user {name}")))
}

fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let group = get_group_by_name(name).map(|group| group.gid());
    group.ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("this machine has no group {name}")))
}

/// The file of a socket. Dropping this removes it, unless another one has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path, made: &OwnedFd) -> io::Result<Self> {
        let found = fstat(made)?;
        Ok(Self { path: path.to_owned(), id: (found.st_dev, found.st_ino) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = id_of(&self.path).is_ok_and(|id| id == self.id);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the file of a Unix socket");
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{chown, symlink},
        net::UnixListener,
    };

    use super::*;

    /// The new server did not start if the old one removed its socket between two looks at it.
    #[test]
    fn a_socket_that_goes_away_meanwhile_is_room() {
        let path = std::env::temp_dir().join(format!("rejoin-room-{}", std::process::id()));
        let ending = thread::spawn({
            let path = path.clone();
            move || {
                for _ in 0..5_000 {
                    drop(UnixListener::bind(&path));
                    let _ = fs::remove_file(&path);
                }
            }
        });
        let mut looked: u32 = 0;
        while !ending.is_finished() {
            looked += 1;
            let made = make_room(&path);
            assert!(made.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::AddrInUse), "{made:?}");
        }
        ending.join().expect("it ends");
        assert!(looked > 0);
    }

    /// A user who may write in the folder could have a server of root change the mode of any file: by a link that replaced
    /// the socket after it was made.
    #[test]
    fn a_link_in_the_place_of_a_socket_changes_no_other_file() {
        let folder = std::env::temp_dir().join(format!("rejoin-link-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let (secret, path) = (folder.join("secret"), folder.join("s"));
        fs::write(&secret, "").expect("a file");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("its owner");
        let socket = UnixSocket { path: path.clone(), mode: 0o606, user: None, group: None };
        let mode =
            |path: &Path| fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777;
        let swaps: [(&str, &dyn Fn()); 2] = [
            ("before it was opened", &|| symlink(&secret, &path).expect("a link")),
            ("a file", &|| fs::hard_link(&secret, &path).expect("a second name")),
        ];
        for (what, swap) in swaps {
            swap();
            assert!(made_at(&path).is_err(), "{what}");
            fs::remove_file(&path).expect("it is there");
        }
        let _listener = UnixListener::bind(&path).expect("a socket");
        // Only root can make one that belongs to another user.
        if geteuid().is_root() {
            chown(&path, Some(65_534), None).expect("root may");
            assert!(made_at(&path).is_err(), "a socket of another user");
            chown(&path, Some(0), None).expect("root may");
        }
        let made = made_at(&path).expect("a socket");
        fs::rename(&path, folder.join("moved")).expect("it is there");
        symlink(&secret, &path).expect("a link");
        allow(&socket, &made).expect("the socket itself is changed");
        assert_eq!((mode(&secret), mode(&folder.join("moved"))), (0o600, 0o606));
        fs::remove_dir_all(&folder).expect("a folder");
    }
}
