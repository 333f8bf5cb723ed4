//! How much memory the machine and its control groups give this process, from the files that say it.

use std::path::Path;

/// The smallest limit: the memory of the machine, or that of a control group (version 1 or 2) that the process is
/// in. It is none if no file says anything. `read` reads a file.
pub fn limit(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(group).flat_map(|(root, file, path)| {
        // A group is bound by the groups above it. In a container the path may be that of the machine, where the
        // container sees only its own group as the root.
        let above: Vec<_> =
            Path::new(path).ancestors().map(|path| root.join(relative(path)).join(file)).collect();
        above.into_iter().filter_map(|path| read(&path)?.trim().parse::<u64>().ok()).collect::<Vec<_>>()
    });
    limits.chain(machine).min()
}

/// True if so much retained memory leaves less than a quarter to connections, and to what messages take beside it.
pub fn is_too_much(retained: u64, memory: u64) -> bool {
    retained > memory / 4 * 3
}

/// For a line of `/proc/self/cgroup`: the folder of all groups, the file of the limit, and the path of the group.
fn group(line: &str) -> Option<(&'static Path, &'static str, &str)> {
    let mut words = line.splitn(3, ':').skip(1);
    let (controllers, path) = (words.next()?, words.next()?);
    if controllers.is_empty() {
        return Some((Path::new("/sys/fs/cgroup"), "memory.max", path));
    }
    let has_memory = controllers.split(',').any(|name| name == "memory");
    has_memory.then_some((Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", path))
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// A path and its text.
    type File = (&'static str, &'static str);

    const MACHINE: File = ("/proc/meminfo", "MemTotal:        4194304 kB\nMemFree:  1 kB\n");

    fn limit_by(files: &[File]) -> Option<u64> {
        limit(|path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_of_machine_and_groups_counts() {
        let v1 = ("/proc/self/cgroup", "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a/b\n1:name=systemd:/a/b\n");
        let v2 = ("/proc/self/cgroup", "0::/system.slice/rejoin.service\n");
        let cases: [(&[File], Option<u64>); 8] = [
            (&[], None),
            (&[MACHINE], Some(4096 * MIB)),
            (
                &[MACHINE, v1, ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "104857600\n")],
                Some(100 * MIB),
            ),
            (
                &[
                    MACHINE,
                    v1,
                    ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "209715200\n"),
                    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(200 * MIB),
            ),
            // A container sees its own group as the root.
            (&[MACHINE, v1, ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "104857600\n")], Some(100 * MIB)),
            (
                &[
                    MACHINE,
                    v2,
                    ("/sys/fs/cgroup/system.slice/rejoin.service/memory.max", "max\n"),
                    ("/sys/fs/cgroup/system.slice/memory.max", "536870912\n"),
                ],
                Some(512 * MIB),
            ),
            (
                &[MACHINE, ("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "536870912\n")],
                Some(512 * MIB),
            ),
            (
                &[("/proc/meminfo", "no such line"), v2, ("/proc/self/cgroup", "nonsense\n4:memory\n::\n")],
                None,
            ),
        ];
        for (files, expected) in cases {
            assert_eq!(limit_by(files), expected, "{files:?}");
        }
    }

    #[test]
    fn a_quarter_of_the_memory_is_left_to_the_rest() {
        assert!(!is_too_much(256 * MIB, 512 * MIB) && !is_too_much(384 * MIB, 512 * MIB));
        assert!(is_too_much(256 * MIB, 256 * MIB) && is_too_much(385 * MIB, 512 * MIB));
        assert!(is_too_much(MIB, 0));
    }
}
