"""How the libraries of each language are installed, and how the driver of the language is started."""

import asyncio, json, os, re, shutil, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
BUILT = os.path.join(TARGET, "clients")


class NotInstalled(Exception):
    pass


def run(*command, folder=HERE, **environment):
    """Runs a command that installs or builds. Its output is shown only if it fails."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)} failed: {done.stdout.strip()}")


def is_newer(made, source):
    return os.path.exists(made) and os.path.getmtime(made) >= os.path.getmtime(source)


def locked(file):
    with open(os.path.join(HERE, file)) as opened:
        return opened.read()


class Python:
    needs = ["python3"]

    def prepare(self):
        for lock in ["python.txt", "sseclient.txt"]:
            folder, lock = os.path.join(BUILT, lock.removesuffix(".txt")), os.path.join(HERE, lock)
            stamp = os.path.join(folder, "installed")
            if not is_newer(stamp, lock):
                shutil.rmtree(folder, ignore_errors=True)
                run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                    "--target", folder, "--requirement", lock)
                open(stamp, "w").close()

    def command(self):
        return [sys.executable, os.path.join(HERE, "python.py")]

    def environment(self):
        return {"PYTHONPATH": os.path.join(BUILT, "python"), "PYTHONDONTWRITEBYTECODE": "1",
                "SSECLIENT": os.path.join(BUILT, "sseclient", "sseclient.py")}

    def version(self, package):
        return re.search(rf"(?m)^{re.escape(package)}==(\S+)", locked("python.txt") + locked("sseclient.txt"))[1]


class Node:
    needs = ["node", "npm"]

    def prepare(self):
        folder = os.path.join(HERE, "node")
        made = os.path.join(folder, "node_modules", ".package-lock.json")
        if not is_newer(made, os.path.join(folder, "package-lock.json")):
            run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=folder)

    def command(self):
        return ["node", os.path.join(HERE, "node", "driver.mjs")]

    def version(self, package):
        return json.loads(locked("node/package-lock.json"))["packages"][f"node_modules/{package}"]["version"]


class Rust:
    needs = ["cargo"]

    def prepare(self):
        run("cargo", "build", "--locked", "--quiet", "--manifest-path", os.path.join(HERE, "rust", "Cargo.toml"),
            CARGO_TARGET_DIR=TARGET)

    def command(self):
        return [os.path.join(TARGET, "debug", "clients")]

    def version(self, package):
        return re.search(rf'name = "{re.escape(package)}"\nversion = "(\S+)"', locked("rust/Cargo.lock"))[1]


LANGUAGES = {"Python": Python(), "Node": Node(), "Rust": Rust()}


def missing(language):
    """The programs of this language that are not installed."""
    return [program for program in LANGUAGES[language].needs if not shutil.which(program)]


class Driver:
    """A process that listens with the libraries of one language."""

    def __init__(self, language):
        self.language, self.jobs, self.process = language, {}, None

    async def start(self):
        tool = LANGUAGES[self.language]
        # Without the proxies of this machine: everything is on loopback.
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= tool.environment() if hasattr(tool, "environment") else {}
        self.log = open(os.path.join(BUILT, f"{self.language}.log"), "w")
        self.process = await asyncio.create_subprocess_exec(
            *tool.command(), env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=self.log, limit=2 ** 24)
        self.reading = asyncio.create_task(self.read())

    async def read(self):
        while line := await self.process.stdout.readline():
            item = json.loads(line)
            self.jobs[item["job"]].take(item)
        await self.process.wait()
        for job in self.jobs.values():
            job.take({"type": "error", "text": "the driver ended"})
            job.take({"type": "end"})

    def send(self, taker, **job):
        self.jobs[taker.number] = taker
        self.process.stdin.write(json.dumps(job).encode() + b"\n")

    async def kill(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
