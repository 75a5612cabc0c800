//! File operations, as trees that come out.

use anyhow::Result;
use kiln_llb::pb;
use kiln_llb::state::{ChownTo, Copy, FileActions, Owner, State};

use super::{Raw, base};
use crate::support::{Site, check_contains};

fn from() -> State {
    let none = ChownTo::default;
    let tree = FileActions::new()
        .mkdir("/dir/sub", 0o750, true)
        .mkfile("/dir/one.txt", 0o640, "1")
        .mkfile("/dir/two.bin", 0o600, "2")
        .mkfile("/dir/sub/three.txt", 0o755, "3")
        .symlink("dir/one.txt", "/link", none(), None)
        .symlink("dir", "/dirlink", none(), None)
        .mkfile_owned(
            "/owned",
            0o4755,
            "o",
            ChownTo { user: Some(Owner::Id(7)), group: Some(Owner::Id(8)) },
            Some(0),
        );
    State::scratch().file(tree)
}

fn create() -> Copy {
    Copy { create_dest_path: true, ..Copy::default() }
}

#[test]
fn copies() -> Result<()> {
    let site = Site::new(&[])?;
    let wild = || Copy { allow_wildcard: true, ..create() };
    let contents = || Copy { contents_only: true, ..create() };
    let cases: Vec<(&str, &str, Copy, &str)> = vec![
        ("/owned", "/to/", create(), "d0755 0:0 to/\n-0755 7:8 to/owned \"o\"\n"),
        ("/owned", "/to", Copy { mode: Some(0), ..create() }, "-0000 7:8 to \"o\"\n"),
        (
            "/dir",
            "/to",
            Copy { mode_text: "u=rwX,go=rX".into(), ..create() },
            "d0755 0:0 to/\n-0644 0:0 to/one.txt \"1\"\nd0755 0:0 to/sub/\n-0755 0:0 to/sub/three.txt \"3\"\n-0644 0:0 to/two.bin \"2\"\n",
        ),
        ("/dir/*.txt", "/to/", wild(), "d0755 0:0 to/\n-0640 0:0 to/one.txt \"1\"\n"),
        ("/dir/*.none", "/to/", Copy { allow_empty_wildcard: true, ..wild() }, ""),
        ("/link", "/to", create(), "l0777 0:0 to -> dir/one.txt\n"),
        ("/link", "/to", Copy { follow_symlinks: true, ..create() }, "-0640 0:0 to \"1\"\n"),
        (
            "/dirlink",
            "/to",
            Copy { follow_symlinks: true, include_patterns: vec!["sub/*".into()], ..contents() },
            "d0755 0:0 to/\nd0750 0:0 to/sub/\n-0755 0:0 to/sub/three.txt \"3\"\n",
        ),
        (
            "/dir",
            "/to",
            Copy { exclude_patterns: vec!["**/*.txt".into()], ..contents() },
            "d0755 0:0 to/\nd0750 0:0 to/sub/\n-0600 0:0 to/two.bin \"2\"\n",
        ),
        (
            "/owned",
            "/to",
            Copy { owner: ChownTo { user: Some(Owner::Id(3)), group: None }, ..create() },
            "-0755 3:3 to \"o\"\n",
        ),
    ];
    for (src, dest, options, want) in cases {
        let state = State::scratch().file(FileActions::new().copy(&from(), src, dest, options.clone()));
        let got = site.llb(&state, &[])?.tree()?;
        assert_eq!(got, want, "{src} {dest} {options:?}");
    }
    for (src, dest, options, want) in [
        ("/none", "/to", create(), "/none"),
        ("/dir/*.none", "/to/", wild(), "/dir/*.none"),
        ("/owned", "/not/there", Copy::default(), "/not"),
        ("/owned", "/to", Copy { mode_text: "u+q".into(), ..create() }, "u+q"),
    ] {
        let state = State::scratch().file(FileActions::new().copy(&from(), src, dest, options));
        check_contains(&site.fails(&state, &[])?, &["error: failed to solve", want]);
    }
    Ok(())
}

#[test]
fn replacing_what_is_in_the_way() -> Result<()> {
    let site = Site::new(&[])?;
    let below = State::scratch()
        .file(FileActions::new().mkdir("/to/one.txt", 0o700, true).mkfile("/to/sub", 0o600, "s"));
    let copy = |options: Copy| below.file(FileActions::new().copy(&from(), "/dir", "/to", options));
    let contents = Copy { contents_only: true, ..create() };
    check_contains(&site.fails(&copy(contents.clone()), &[])?, &["cannot replace to directory"]);
    let got = site.llb(&copy(Copy { replace: true, ..contents }), &[])?.tree()?;
    assert_eq!(
        got,
        "d0700 0:0 to/\n-0640 0:0 to/one.txt \"1\"\nd0750 0:0 to/sub/\n-0755 0:0 to/sub/three.txt \"3\"\n-0600 0:0 to/two.bin \"2\"\n"
    );
    Ok(())
}

#[test]
fn owners_by_name_are_looked_up_where_they_are_changed() -> Result<()> {
    let site = Site::new(&[])?;
    let named = |user: &str, group: Option<&str>| ChownTo {
        user: Some(Owner::Name(user.into())),
        group: group.map(|g| Owner::Name(g.into())),
    };
    let made = FileActions::new()
        .mkdir_owned("/made/a", 0o711, true, named("app", None), None)
        .mkfile_owned("/made/b", 0o600, "", named("nobody-here", Some("extra")), None)
        .symlink("x", "/made/c", named("app", Some("no-group")), None);
    let state = base()?.file(made);
    let only = State::scratch().file(FileActions::new().copy(&state, "/made", "/", create()));
    assert_eq!(
        site.llb(&only, &[])?.tree()?,
        "d0711 1000:1000 made/\nd0711 1000:1000 made/a/\n-0600 0:2000 made/b \"\"\nl0777 1000:1000 made/c -> x\n"
    );
    Ok(())
}

#[test]
fn removals() -> Result<()> {
    let site = Site::new(&[])?;
    let left = |path: &str, allow_missing: bool, wildcard: bool| -> Result<String> {
        let state = from().file(FileActions::new().remove(path, allow_missing, wildcard));
        let tree = site.llb(&state, &[])?.tree()?;
        Ok(tree.lines().filter_map(|l| l.split(' ').nth(2)).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(left("/dir", false, false)?, "dirlink link owned");
    assert_eq!(
        left("/dirlink", false, false)?,
        "dir/ dir/one.txt dir/sub/ dir/sub/three.txt dir/two.bin link owned"
    );
    assert_eq!(left("/dirlink/sub", false, false)?, "dir/ dir/one.txt dir/two.bin dirlink link owned");
    assert_eq!(left("/d*", false, true)?, "link owned");
    assert_eq!(left("/none*", false, true)?.split(' ').count(), 8);
    assert_eq!(left("/none", true, false)?.split(' ').count(), 8);
    for (path, want) in [("/none", "/none"), ("/", "rmPath: invalid empty path")] {
        let state = from().file(FileActions::new().remove(path, false, false));
        check_contains(&site.fails(&state, &[])?, &[want]);
    }
    Ok(())
}

#[test]
fn actions_fork_and_come_together() -> Result<()> {
    let site = Site::new(&[])?;
    let mkfile = |input, output, name: &str| pb::FileAction {
        input,
        secondary_input: -1,
        output,
        action: Some(pb::file_action::Action::Mkfile(pb::FileActionMkFile {
            path: name.into(),
            mode: 0o644,
            timestamp: -1,
            ..Default::default()
        })),
    };
    let (mut raw, inputs) = Raw::new(&[&super::file("base", "")])?;
    // 1 on the input, then 2 and 3 on 1, then 4 on nothing: four outputs of one op.
    let actions = vec![mkfile(0, 3, "/a"), mkfile(1, 0, "/b"), mkfile(1, 1, "/c"), mkfile(-1, 2, "/d")];
    let edge = raw.add(&inputs, pb::op::Op::File(pb::FileOp { actions }))?;
    for (index, want) in [(0, "a b base"), (1, "a base c"), (2, "d"), (3, "a base")] {
        let definition = Raw { definition: raw.definition.clone() }.finish(&super::output(&edge, index))?;
        let tree = site.definition(&definition, &[])?.tree()?;
        let names: Vec<_> = tree.lines().filter_map(|l| l.split(' ').nth(2)).collect();
        assert_eq!(names.join(" "), want, "output {index}");
    }
    for (actions, want) in [
        (vec![mkfile(0, -1, "/a")], "no outputs specified"),
        (vec![mkfile(0, 0, "/a"), mkfile(0, 0, "/b")], "duplicate output 0"),
        (vec![mkfile(0, 1, "/a"), mkfile(0, -1, "/b")], "missing output index 0"),
        (vec![mkfile(1, 0, "/a")], "loop from index 1"),
        (vec![mkfile(9, 0, "/a")], "invalid input index 9"),
    ] {
        let (mut raw, inputs) = Raw::new(&[&super::file("base", "")])?;
        let edge = raw.add(&inputs, pb::op::Op::File(pb::FileOp { actions }))?;
        check_contains(&site.solve(&raw.finish(&edge)?, &[])?.failure()?.stderr, &[want]);
    }
    Ok(())
}
