"""The client library: CPU of a program that reads 10,000 messages of 4 kB, beside poplib.

Each program runs on the core of the load generator and reads from the same server.  It counts its
own CPU from the connection on, without imports.  restante pipelines; poplib and its replacement
``restante.poplib`` wait for each message.
"""

from __future__ import annotations

import subprocess
import textwrap

import harness

USER = "c10k_lf"
POPLIB = """
    import {module} as poplib, time
    began, cpu = time.perf_counter(), time.process_time()
    client = poplib.POP3("127.0.0.1", {port})
    client.user("{user}"), client.pass_("{password}")
    sizes = []
    for number in range(1, client.stat()[0] + 1):
        sizes.append(sum(map(len, client.retr(number)[1])))
    client.quit()
"""
BLOCKING = """
    import restante, time
    began, cpu = time.perf_counter(), time.process_time()
    sizes = []
    url = "pop3://{user}@127.0.0.1:{port}"
    with restante.connect_blocking(url, password="{password}", tls=restante.TLS.NONE) as client:
        for message, body in client.retrieve_all(list(client.messages())):
            sizes.append(len(body.read()))
"""
ASYNCHRONOUS = """
    import asyncio, restante, time
    sizes = []

    async def main():
        url = "pop3://{user}@127.0.0.1:{port}"
        async with restante.connect(url, password="{password}", tls=restante.TLS.NONE) as client:
            messages = [message async for message in client.messages()]
            async for message, body in client.retrieve_all(messages):
                sizes.append(len(await body.read()))

    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(main())
"""
END = """
    print(len(sizes), time.perf_counter() - began, time.process_time() - cpu)
"""
CLIENTS = {
    "restante.connect": ASYNCHRONOUS,
    "restante.connect_blocking": BLOCKING,
    "restante.poplib": POPLIB,
}


def main() -> None:
    parser = harness.options(__doc__)
    chosen = parser.parse_args()
    results = harness.Results("bench_client")
    with harness.restante([USER]) as server:
        harness.warm(server.mail, [USER])
        for _ in range(chosen.rounds):
            peer = read(server, POPLIB, "poplib")
            for question, program in CLIENTS.items():
                ours = read(server, program, "restante.poplib")
                for contender, (rate, cost) in {"restante": ours, "poplib": peer}.items():
                    results.add(question, contender, "messages/s", rate)
                    results.add(question, contender, "µs of client CPU each", cost)
    results.report()


def read(server: harness.Server, program: str, module: str) -> tuple[float, float]:
    """Return messages a second, and µs of CPU for each.

    Raises:
        SystemExit: the program failed; such a run has no figures.
    """
    values = {"port": server.port, "user": USER, "password": harness.PASSWORD, "module": module}
    text = textwrap.dedent((program + END).format(**values))
    words = ["taskset", "-c", harness.LOAD_CORE, harness.PYTHON, "-c", text]
    done = subprocess.run(words, env=harness.ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {done.stdout}{done.stderr}")
    count, took, cost = map(float, done.stdout.split())
    if count != harness.corpora.SHAPES[USER.partition("_")[0]][0]:
        raise SystemExit(f"bench: {count:.0f} messages were read")
    return count / took, cost / count * 1e6


if __name__ == "__main__":
    main()
