"""The processes of a run, and the end of the run when one of them fails."""

import asyncio
import multiprocessing


class Failed(Exception):
    """The run cannot go on. Its text is the fault."""


class Process:
    """A process of this run, and the pipe to it."""

    def __init__(self, function, *arguments):
        self.name, self.messages = function.__name__, []
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=guarded, args=(function, theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, message):
        try:
            self.pipe.send(message)
        except OSError:
            # Its own words say more, if it has sent them.
            self.look()
            raise Failed(f"{self.name} ended") from None

    def look(self):
        """Takes what the process has sent. Fails with its words if it has failed."""
        while self.pipe.poll():
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                raise Failed(f"{self.name} ended") from None
            if isinstance(message, Failed):
                raise message
            self.messages.append(message)

    def end(self):
        """Ends it at once, with all its connections."""
        self.process.kill()
        self.process.join()


def guarded(function, pipe, *arguments):
    """Does the work of a process. Its failure goes through the pipe at once, and then it waits for its end."""
    try:
        function(pipe, *arguments)
    except Exception as fault:
        pipe.send(Failed(f"{function.__name__} failed: {type(fault).__name__}: {fault}"))
    # The end of the pipe is a failure, so the pipe stays until the run is over.
    try:
        while True:
            pipe.recv()
    except EOFError:
        pass


async def received(pipe, tasks=()):
    """The next message of the pipe. Fails at once if one of the tasks fails."""
    is_there, loop = asyncio.Event(), asyncio.get_running_loop()
    # No thread waits for the message: a process cannot fail while a thread of it waits.
    loop.add_reader(pipe.fileno(), is_there.set)
    try:
        waiting = asyncio.create_task(is_there.wait())
        pending = {waiting, *tasks}
        while not waiting.done():
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        return pipe.recv()
    finally:
        loop.remove_reader(pipe.fileno())
