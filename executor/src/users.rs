//! Users and groups as a step names them, looked up in its root filesystem.

use kiln_rootdir::Root;

use crate::error::{Error, Result};
use crate::oci::User;

/// The most that is read of `/etc/passwd` or `/etc/group`.
const MAX_FILE: u64 = 10 * 1024 * 1024;
/// The kernel's identifiers are 32 bits wide, those of the files stay below 31.
const MAX_ID: u32 = i32::MAX as u32;

/// Finds who `text` means: `user` or `user:group`, each a name or a number; empty is root.
///
/// Two numbers (`root` counts as 0) stand for themselves: nothing is read, and there are no other groups.
/// Everything else goes through `/etc/passwd` and `/etc/group`. An unknown number stands for itself, with
/// group 0; without a group named, those are added that list the user. The primary group is always among the
/// additional ones.
///
/// # Errors
/// An unknown name, a number out of range, a file that is too large or no regular file; none if `text` is empty.
pub fn find_user(root: &Root, text: &str) -> Result<User> {
    if let Some((uid, gid)) = numbers(text) {
        return Ok(User { uid, gid, additional_gids: vec![gid] });
    }
    if text.is_empty() {
        let found = look_up(root, "0").unwrap_or_default();
        return Ok(with_primary(found));
    }
    look_up(root, text).map(with_primary)
}

fn look_up(root: &Root, text: &str) -> Result<User> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve(text, &passwd, &group)
}

fn resolve(text: &str, passwd: &str, group: &str) -> Result<User> {
    let (user, named_group) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|entry| entry.is(user));
    let mut found = match (&entry, number(user)) {
        (Some(entry), _) => User { uid: entry.uid, gid: entry.gid, additional_gids: Vec::new() },
        (None, Some(uid)) if uid <= MAX_ID => User { uid, gid: 0, additional_gids: Vec::new() },
        (None, Some(_)) => return Err(unusable(user, "uids and gids must be in range 0-2147483647")),
        (None, None) => return Err(unusable(user, "no matching entries in passwd file")),
    };
    let groups = group.lines().filter_map(GroupEntry::parse);
    if named_group.is_empty() {
        if let Some(entry) = &entry {
            found.additional_gids =
                groups.filter(|group| group.members.contains(&entry.name)).map(|group| group.gid).collect();
        }
        return Ok(found);
    }
    let mut groups = groups;
    found.gid = match (groups.find(|entry| entry.is(named_group)), number(named_group)) {
        (Some(entry), _) => entry.gid,
        (None, Some(gid)) if gid <= MAX_ID => gid,
        (None, Some(_)) => return Err(unusable(named_group, "uids and gids must be in range 0-2147483647")),
        (None, None) => {
            let reason = format!("unable to find group {named_group}: no matching entries in group file");
            return Err(Error::User { user: text.to_owned(), reason });
        }
    };
    Ok(found)
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> PasswdEntry<'a> {
    /// `name:password:uid:gid:…`; lines of any other form name nobody.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.trim().parse().ok()?;
        let gid = fields.next()?.trim().parse().ok()?;
        Some(Self { name, uid, gid })
    }

    fn is(&self, text: &str) -> bool {
        self.name == text || number(text) == Some(self.uid)
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

impl<'a> GroupEntry<'a> {
    /// `name:password:gid:member,member`
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.trim().parse().ok()?;
        let members = fields.next().unwrap_or_default().split(',').map(str::trim).collect();
        Some(Self { name, gid, members })
    }

    fn is(&self, text: &str) -> bool {
        self.name == text || number(text) == Some(self.gid)
    }
}

/// Both parts, if both are numbers or `root`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let id = |part: &str| if part == "root" { Some(0) } else { number(part) };
    let (user, group) = text.split_once(':')?;
    Some((id(user)?, id(group)?))
}

fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn with_primary(mut user: User) -> User {
    if !user.additional_gids.contains(&user.gid) {
        user.additional_gids.insert(0, user.gid);
    }
    user
}

fn unusable(user: &str, reason: &str) -> Error {
    Error::User { user: user.to_owned(), reason: reason.to_owned() }
}

/// The content of a file; empty if it is not there. What is no text in it matches no name.
fn read(root: &Root, path: &str) -> Result<String> {
    match root.read(path, MAX_FILE) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(error) if error.is_not_found() => Ok(String::new()),
        Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            Err(Error::FileTooLarge { path: path.to_owned(), limit: MAX_FILE })
        }
        Err(source) => Err(Error::Root { operation: "read users and groups", source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# nobody:x:9:9\nbroken:x\nold:x:abc:1\n\
        app:x:1000:1001:App:/home/app:/bin/sh\napp2:x:1000:7::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nextra:x:20: app ,x\nnobody\n";

    #[track_caller]
    fn check(text: &str, want: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        let got = match find_user(&Root::open(dir.path()).unwrap(), text) {
            Ok(user) => format!("{}:{} {:?}", user.uid, user.gid, user.additional_gids),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        check("", "0:0 [0, 10]");
        check("0", "0:0 [0, 10]");
        check("root", "0:0 [0, 10]");
        check("root:root", "0:0 [0]");
        check("1000:1001", "1000:1001 [1001]");
        check("app", "1000:1001 [1001, 10, 20]");
        check("1000", "1000:1001 [1001, 10, 20]");
        check("app:wheel", "1000:10 [10]");
        check("app:77", "1000:77 [77]");
        check(":wheel", "0:10 [10]");
        check("4242", "4242:0 [0]");
        check("4242:wheel", "4242:10 [10]");
        check("ghost", "unable to find user ghost: no matching entries in passwd file");
        check("old", "unable to find user old: no matching entries in passwd file");
        check(
            "app:ghosts",
            "unable to find user app:ghosts: unable to find group ghosts: no matching entries in group file",
        );
        check("3000000000", "unable to find user 3000000000: uids and gids must be in range 0-2147483647");
    }

    #[test]
    fn files_that_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(find_user(&root, "5").unwrap().uid, 5, "no files at all");
        std::fs::create_dir_all(dir.path().join("etc/passwd")).unwrap();
        assert!(find_user(&root, "5").is_err());
        assert_eq!(find_user(&root, "").unwrap().uid, 0, "empty never fails");
        assert_eq!(find_user(&root, "5:6").unwrap().gid, 6, "nothing is read");
    }
}
