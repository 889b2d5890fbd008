"""What is compared: how each system is installed, started and fed, and where its spans end up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class System:
    """One tracing store. Texts may hold {place}, {dsn}, {port}, {grpc_port}, {folder} and {bin}.

    `place` is the database as the rest of an SQLAlchemy URL, `dsn` the same for libpq, `folder` a
    directory of its own, `bin` where the programs of its environment are.
    """

    name: str
    about: str
    # A row of it is a span that lasts.
    table: str
    # The module that hands over the spans.
    worker: str
    # What receives them; without one the worker itself does, as a library.
    server: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    # Its requirements file; without one it runs in the environment of these tests.
    requirements: str | None = None


_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"

TRACEDB = System(
    name="tracedb",
    about="Tenant.ingest, in process",
    table="tracedb.llm_spans",
    worker="peers.store_tracedb",
    environment={"TRACEDB_DSN": "{dsn}"},
)
TRACEDB_SERVICE = System(
    name="tracedb_service",
    about="an HTTP service that records through a Writer with a spool",
    table="tracedb.llm_spans",
    worker="peers.send_json",
    server=("{bin}/python", "-m", "peers.serve_tracedb"),
    environment={
        _ENDPOINT: "http://127.0.0.1:{port}/",
        "PORT": "{port}",
        "TRACEDB_DSN": "{dsn}",
        "TRACEDB_SPOOL_DIR": "{folder}/spool",
    },
)
OURS = (TRACEDB, TRACEDB_SERVICE)

PEERS = (
    System(
        name="phoenix",
        about="Phoenix's server, by OTLP/HTTP",
        table="public.spans",
        worker="peers.send_otlp",
        server=("{bin}/phoenix", "serve"),
        environment={
            _ENDPOINT: "http://127.0.0.1:{port}/v1/traces",
            "PHOENIX_SQL_DATABASE_URL": "postgresql://{place}",
            "PHOENIX_WORKING_DIR": "{folder}",
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": "{port}",
            "PHOENIX_GRPC_PORT": "{grpc_port}",
            "PHOENIX_TELEMETRY_ENABLED": "false",
        },
        requirements="requirements-phoenix.txt",
    ),
    System(
        name="mlflow",
        about="MLflow's server, by OTLP/HTTP",
        table="public.spans",
        worker="peers.send_otlp",
        server=(
            *("{bin}/mlflow", "server", "--host", "127.0.0.1", "--port", "{port}"),
            *("--default-artifact-root", "{folder}"),
        ),
        environment={
            _ENDPOINT: "http://127.0.0.1:{port}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-mlflow-experiment-id=0",
            "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://{place}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        },
        requirements="requirements-mlflow.txt",
    ),
    System(
        name="agno",
        about="agno's PostgresDb, in process",
        table="ai.agno_spans",
        worker="peers.store_agno",
        environment={
            "AGNO_DATABASE_URL": "postgresql+psycopg://{place}",
            "AGNO_TELEMETRY": "false",
        },
        requirements="requirements-agno.txt",
    ),
)
