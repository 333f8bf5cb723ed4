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
    # The packages are for one version of Python.
    folder = os.path.join(BUILT, f"python3.{sys.version_info.minor}")

    def prepare(self):
        for name in ["python", "sseclient"]:
            folder, lock = os.path.join(self.folder, name), os.path.join(HERE, f"{name}.txt")
            stamp = os.path.join(folder, "installed")
            if not is_newer(stamp, lock):
                shutil.rmtree(folder, ignore_errors=True)
                run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                    "--target", folder, "--requirement", lock)
                open(stamp, "w").close()

    def command(self):
        return [sys.executable, os.path.join(HERE, "python.py")]

    def environment(self):
        return {"PYTHONPATH": os.path.join(self.folder, "python"), "PYTHONDONTWRITEBYTECODE": "1",
                "SSECLIENT": os.path.join(self.folder, "sseclient", "sseclient.py")}

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


class Go:
    needs = ["go"]
    program = os.path.join(BUILT, "go", "driver")

    def prepare(self):
        run("go", "build", "-o", self.program, ".", folder=os.path.join(HERE, "go"), GOFLAGS="-modcacherw",
            GOPATH=os.path.join(BUILT, "go", "path"), GOCACHE=os.path.join(BUILT, "go", "cache"))

    def command(self):
        return [self.program]

    def version(self, package):
        found = re.search(rf"(?m)^\s*\S*{re.escape(package)}(?:/v\d+)? v(\S+)", locked("go/go.mod"))
        return found[1]


class Java:
    needs = ["java", "javac", "mvn"]
    folder = os.path.join(BUILT, "java")

    def prepare(self):
        source, libraries = os.path.join(HERE, "java"), os.path.join(self.folder, "libraries")
        stamp = os.path.join(libraries, "installed")
        if not is_newer(stamp, os.path.join(source, "pom.xml")):
            shutil.rmtree(libraries, ignore_errors=True)
            run("mvn", "--quiet", "--batch-mode", f"-Dmaven.repo.local={self.folder}/repository",
                f"-DoutputDirectory={libraries}", "dependency:copy-dependencies", folder=source)
            open(stamp, "w").close()
        run("javac", "-nowarn", "-d", os.path.join(self.folder, "classes"), "-cp", f"{libraries}/*",
            *[os.path.join(source, name) for name in os.listdir(source) if name.endswith(".java")])

    def command(self):
        return ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
                f"{self.folder}/classes:{self.folder}/libraries/*", "Driver"]

    def version(self, package):
        pattern = rf"<artifactId>{re.escape(package)}</artifactId>\s*<version>([^<]+)"
        return re.search(pattern, locked("java/pom.xml"))[1]


class Installed:
    """A language whose libraries are packages of Debian. Their versions are those of Debian 12."""

    def __init__(self, program, driver, test):
        self.needs, self.driver, self.test = [program], driver, test

    def prepare(self):
        run(self.needs[0], *self.test)

    def command(self):
        return [self.needs[0], os.path.join(HERE, self.driver)]


LANGUAGES = {
    "Python": Python(),
    "Node": Node(),
    "Rust": Rust(),
    "Go": Go(),
    "Java": Java(),
    "Ruby": Installed("ruby", "ruby.rb", ["-rfaye/websocket", "-e", "1"]),
    "Perl": Installed("perl", "perl.pl", ["-MMojolicious", "-e", "1"]),
    "PHP": Installed("php", "php.php", ["-r", "exit(extension_loaded('curl') ? 0 : 1);"]),
}


def missing(language):
    """The programs of this language that are not installed."""
    return [program for program in LANGUAGES[language].needs if not shutil.which(program)]


class Driver:
    """A process that listens with the libraries of one language."""

    def __init__(self, language):
        self.language, self.jobs, self.process = language, {}, None
        self.has_ended = self.is_done = False

    async def start(self):
        tool = LANGUAGES[self.language]
        # Without the proxies of this machine: everything is on loopback.
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= tool.environment() if hasattr(tool, "environment") else {}
        os.makedirs(BUILT, exist_ok=True)
        self.log = open(os.path.join(BUILT, f"{self.language}.log"), "w")
        self.process = await asyncio.create_subprocess_exec(
            *tool.command(), env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=self.log, limit=2 ** 24)
        self.reading = asyncio.create_task(self.read())

    async def read(self):
        try:
            while line := await self.process.stdout.readline():
                item = json.loads(line)
                self.jobs[item["job"]].take(item)
            why = "the driver ended"
        except ValueError as problem:
            why = f"the driver printed what is no JSON: {problem}"
        if not self.is_done:
            print(f"{self.language}: {why}, see {self.log.name}", file=sys.stderr)
        self.has_ended = True
        for job in self.jobs.values():
            job.take({"type": "end"})

    def send(self, taker, **job):
        if self.has_ended:
            taker.take({"type": "end"})
            return
        self.jobs[taker.number] = taker
        self.process.stdin.write(json.dumps(job).encode() + b"\n")

    async def kill(self):
        self.is_done = True
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
