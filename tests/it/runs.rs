//! What a step finds around it.

use anyhow::Result;
use expect_test::{Expect, expect};

use crate::support::{Site, check_contains};

/// Runs one script with flags of `RUN` and compares what it writes to `/out`.
fn check(run: &str, args: &[&str], want: Expect) -> Result<()> {
    let site = Site::new(&[("dir/file", "from the context\n"), ("secret", "hush\n")])?;
    let built = site.dockerfile(
        &format!("ARG BASE\nFROM $BASE AS other\nRUN echo other > /other\nFROM $BASE AS b\n{run}\nFROM scratch\nCOPY --from=b /out /\n"),
        args,
    )?;
    want.assert_eq(&built.read("out")?);
    Ok(())
}

#[test]
fn bind_mounts() -> Result<()> {
    check(
        "RUN --mount=target=/ctx --mount=type=bind,from=other,source=/other,target=/o --mount=target=/w,rw,source=dir \
         cat /ctx/dir/file /o > /out; echo x 2>/dev/null > /ctx/new || echo read-only >> /out; echo new > /w/new && cat /w/new >> /out\n\
         RUN ls /ctx /w /o >> /out 2>&1; true",
        &[],
        expect![[r#"
            from the context
            other
            read-only
            new
            ls: /ctx: No such file or directory
            ls: /w: No such file or directory
            ls: /o: No such file or directory
        "#]],
    )
}

#[test]
fn cache_mounts_last_between_builds() -> Result<()> {
    let site = Site::new(&[])?;
    let dockerfile = "ARG BASE\nFROM $BASE AS b\nARG N\nRUN --mount=type=cache,id=k,target=/c echo $N >> /c/all; cp /c/all /out\n\
         RUN --mount=type=cache,target=/c,id=other,mode=0700,uid=5,gid=6 stat -c '%a %u:%g' /c >> /out; ls /c >> /out\n\
         FROM scratch\nCOPY --from=b /out /\n";
    site.dockerfile(dockerfile, &["--opt=build-arg:N=1"])?;
    let built = site.dockerfile(dockerfile, &["--opt=build-arg:N=2"])?;
    assert_eq!(built.read("out")?, "1\n2\n700 5:6\n");
    Ok(())
}

#[test]
fn locked_cache_mounts_are_used_one_after_the_other() -> Result<()> {
    let mount = "--mount=type=cache,target=/c,sharing=locked";
    let step = format!("RUN {mount} mkdir /c/busy && sleep 0.3 && rmdir /c/busy && touch /done");
    let site = Site::new(&[])?;
    site.dockerfile(
        &format!(
            "ARG BASE\nFROM $BASE AS a\n{step}\nFROM $BASE AS b\n{step} /b\nFROM scratch\nCOPY --from=a /done /1\nCOPY --from=b /done /2\n"
        ),
        &[],
    )?;
    Ok(())
}

#[test]
fn tmpfs_mounts_are_empty_and_gone() -> Result<()> {
    check(
        "RUN --mount=type=tmpfs,target=/t,size=1m touch /t/x && grep ' /t ' /proc/mounts | cut -d' ' -f1-3 > /out; \
         dd if=/dev/zero of=/t/big bs=64k count=32 2>/dev/null || echo full >> /out\nRUN ls /t >> /out 2>&1; true",
        &[],
        expect![[r#"
            tmpfs /t tmpfs
            full
            ls: /t: No such file or directory
        "#]],
    )
}

#[test]
fn secrets_are_there_for_one_step() -> Result<()> {
    let site = Site::new(&[])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("s");
    std::fs::write(&file, "hush")?;
    site.write(&[(
        "Dockerfile",
        "ARG BASE\nFROM $BASE AS b\nRUN --mount=type=secret,id=s cat /run/secrets/s > /out; stat -c ' %a %u' /run/secrets/s >> /out\n\
         RUN --mount=type=secret,id=s,target=/x,mode=0444,uid=7 stat -c '%a %u' /x >> /out\n\
         RUN --mount=type=secret,id=s,env=S echo $S >> /out\nRUN ls /run/secrets /x >> /out 2>&1; true\n\
         RUN --mount=type=secret,id=unknown ls /run/secrets/unknown >> /out 2>&1; true\nFROM scratch\nCOPY --from=b /out /\n",
    )])?;
    let built = site.local(&[&format!("--secret=id=s,src={}", file.display())])?;
    expect![[r#"
        hush 400 0
        444 7
        hush
        ls: /run/secrets: No such file or directory
        ls: /x: No such file or directory
        ls: /run/secrets/unknown: No such file or directory
    "#]]
    .assert_eq(&built.read("out")?);
    Ok(())
}

#[test]
fn without_network_there_is_only_loopback() -> Result<()> {
    check(
        "RUN --network=none ip -o link show up | cut -d: -f2 > /out; ip -o link show lo | grep -o 'LOOPBACK[A-Z_,]*UP' >> /out",
        &[],
        expect![[r#"
             lo
            LOOPBACK,UP,LOWER_UP
        "#]],
    )
}

#[test]
fn a_step_is_alone_in_its_sandbox() -> Result<()> {
    check(
        "RUN hostname > /out; echo $$ >> /out; ls /proc > /all; grep -c '^[0-9]' /all >> /out; rm /all; cat /proc/self/status | grep -E 'CapEff|CapInh|CapAmb|NoNewPrivs|Seccomp:' >> /out",
        &[],
        expect![[r#"
            buildkitsandbox
            1
            2
            CapInh:	0000000000000000
            CapEff:	00000000a80425fb
            CapAmb:	0000000000000000
            NoNewPrivs:	0
            Seccomp:	2
        "#]],
    )
}

#[test]
fn kernel_files_are_masked_or_read_only() -> Result<()> {
    check(
        "RUN [ -c /proc/keys ] && echo masked > /out; \
         ls /sys/firmware | wc -l >> /out; \
         for f in /proc/sys/kernel/hostname /proc/sysrq-trigger; do echo x 2>/dev/null > $f || echo read-only >> /out; done; \
         mount -t tmpfs t /mnt 2>/dev/null || echo no mount >> /out; mknod /n b 8 0 && dd if=/n of=/dev/null count=1 2>/dev/null || echo no device >> /out; rm -f /n",
        &[],
        expect![[r#"
            masked
            0
            read-only
            read-only
            no mount
            no device
        "#]],
    )
}

#[test]
fn names_resolve_as_the_step_is_told() -> Result<()> {
    check(
        "RUN grep -E 'localhost|extra|sandbox' /etc/hosts > /out; [ -s /etc/resolv.conf ] && echo resolv >> /out\nRUN hostname >> /out",
        &["--opt=add-hosts=extra=10.1.2.3", "--opt=hostname=box"],
        expect![[r#"
            127.0.0.1	localhost box
            ::1	localhost ip6-localhost ip6-loopback
            10.1.2.3	extra
            resolv
            box
        "#]],
    )
}

#[test]
fn files_made_for_a_step_are_not_in_the_image() -> Result<()> {
    let site = Site::new(&[(
        "Dockerfile",
        "FROM scratch\nCOPY busybox /bin/sh\nRUN --mount=type=cache,target=/deep/cache : > /made\n",
    )])?;
    std::fs::copy("/bin/busybox", site.context().join("busybox"))?;
    let built = site.local(&[])?;
    let names: Vec<_> =
        built.tree()?.lines().filter_map(|l| l.split(' ').nth(2).map(str::to_owned)).collect();
    expect![[r#"
        bin/
        bin/sh
        dev/
        made
        proc/
        sys/
    "#]]
    .assert_eq(&(names.join("\n") + "\n"));
    Ok(())
}

#[test]
fn much_output_does_not_stop_a_step() -> Result<()> {
    let site = Site::new(&[])?;
    site.write(&[(
        "Dockerfile",
        "ARG BASE\nFROM $BASE\nRUN yes 'a line of output' | head -c 6000000; echo the end\n",
    )])?;
    let log = site.build(&[])?.success()?.stderr;
    check_contains(&log, &["output clipped, log limit"]);
    Ok(())
}

#[test]
fn standard_input_is_empty_and_descriptors_do_not_leak() -> Result<()> {
    check(
        "RUN cat > /out; ls -l /proc/self/fd | grep -c '[0-9] -> ' >> /out",
        &[],
        expect![[r#"
            3
        "#]],
    )
}
