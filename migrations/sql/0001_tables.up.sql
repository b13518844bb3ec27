-- tasker: tables.
--
-- Who is authoritative. tasks and steps are the truth about work; everything
-- else is derived from them or helps to be quick: river_job (River's table, in
-- this schema) makes a worker look at a task, dispatches says which attempts
-- are out at Sidekiq, events is the record of what happened.
--
-- Who may write. The app inserts into tasks and nothing else. A worker writes
-- a task and its steps only while tasks.owner names it, through the functions
-- of 0003; a Sidekiq process writes through the functions of 0004. An update
-- that moves a task or a step along an edge that doesn't exist is refused by
-- the guards below, whoever sends it.
--
-- Lock order, for every function: tasks, then steps, then dispatches, then
-- river_job; inside a table by ascending id. No function takes them in another
-- order, so they can't deadlock with each other.

CREATE TABLE tasker.task_templates (
    template_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace          text NOT NULL,
    name               text NOT NULL,
    version            text NOT NULL CHECK (version ~ '^\d{1,9}\.\d{1,9}\.\d{1,9}$'),
    version_key        int[] GENERATED ALWAYS AS (string_to_array(version, '.')::int[]) STORED, -- sorts 1.10.0 after 1.9.0
    description        text,
    definition         jsonb NOT NULL, -- the whole template, keys as in its YAML
    checksum           text NOT NULL,  -- of the definition: tells a changed template from the same one
    max_parallel_steps int NOT NULL CHECK (max_parallel_steps > 0),
    used_at            timestamptz,    -- first task: from then on the template is immutable
    registered_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (namespace, name, version)
);
COMMENT ON TABLE tasker.task_templates IS 'Registered workflow definitions; immutable once a task has used them';

-- The steps of a template in the form that expanding a task needs. A task's
-- edges are its template's: they are not copied per task.
CREATE TABLE tasker.template_steps (
    template_id     bigint NOT NULL REFERENCES tasker.task_templates ON DELETE CASCADE,
    position        int NOT NULL,
    name            text NOT NULL,
    handler_class   text,
    handler         text,
    queue           text NOT NULL DEFAULT 'default',
    depends_on      int[] NOT NULL DEFAULT '{}', -- positions
    attempt_limit   int NOT NULL CHECK (attempt_limit > 0),
    timeout_seconds double precision,
    handler_config  jsonb NOT NULL DEFAULT '{}',
    result_schema   jsonb,
    PRIMARY KEY (template_id, position),
    UNIQUE (template_id, name),
    CHECK ((handler_class IS NULL) <> (handler IS NULL))
);

CREATE INDEX template_steps_with_schema ON tasker.template_steps (template_id) WHERE result_schema IS NOT NULL; -- mostly empty: tells at once that there is nothing to check

CREATE TABLE tasker.tasks (
    task_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    template_id     bigint NOT NULL, -- filled in by the insert trigger, which also guards it: a foreign key would cost a lock per row
    namespace       text NOT NULL DEFAULT 'default',
    name            text NOT NULL,
    version         text NOT NULL,   -- left out: the latest
    state           text NOT NULL DEFAULT 'pending'
                    CHECK (state IN ('pending', 'in_progress', 'complete', 'error', 'cancelled', 'resolved_manually')),
    context         jsonb NOT NULL DEFAULT '{}',
    priority        smallint NOT NULL DEFAULT 2 CHECK (priority BETWEEN 1 AND 4), -- 1 goes first
    run_at          timestamptz,     -- not before this time; null: at once
    idempotency_key text,            -- unique per namespace and name
    correlation_id  text,
    tags            text[] NOT NULL DEFAULT '{}',
    initiator       text,
    source_system   text,
    reason          text,
    bypass_steps    text[] NOT NULL DEFAULT '{}', -- names of steps that this task skips from the start
    paused_at       timestamptz,     -- set: no new attempt starts
    error           jsonb,           -- of a task in state error: the steps that blocked it
    owner           bigint,          -- the worker whose loop runs it; null: nobody
    epoch           int NOT NULL DEFAULT 0, -- grows with each change of owner: an old loop can't write
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE tasker.tasks IS 'INSERT here to start a workflow';

CREATE UNIQUE INDEX tasks_idempotency ON tasker.tasks (namespace, name, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_owned ON tasker.tasks (owner) WHERE owner IS NOT NULL;
CREATE INDEX tasks_open ON tasker.tasks (task_id) WHERE state IN ('pending', 'in_progress');

CREATE TABLE tasker.steps (
    step_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id     bigint NOT NULL,
    position    int NOT NULL,      -- in the template
    attempts    int NOT NULL DEFAULT 0, -- number of the current attempt: with step_id the fence of every result
    losses      int NOT NULL DEFAULT 0, -- attempts lost with a process: they don't count against the limit
    forgiven    int NOT NULL DEFAULT 0, -- attempts that an operator's retry struck off: they don't either
    retry_at    timestamptz,       -- in waiting_for_retry: not before
    started_at  timestamptz,       -- of the current attempt
    finished_at timestamptz,
    name        text NOT NULL,
    state       text NOT NULL DEFAULT 'pending'
                CHECK (state IN ('pending', 'enqueued', 'in_progress', 'waiting_for_retry', 'complete', 'error',
                                 'cancelled', 'skipped', 'resolved_manually')),
    result      jsonb,
    error       jsonb              -- the last failure; kept when a later attempt succeeds
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- No index on anything that changes: updates of a step stay on its page (HOT).
CREATE UNIQUE INDEX steps_of_task ON tasker.steps (task_id, position);

-- The attempts that are out at Sidekiq: a row from the claim until the result
-- is taken. Small, however many steps there are.
CREATE TABLE tasker.dispatches (
    step_id    bigint PRIMARY KEY,
    task_id    bigint NOT NULL,
    attempt    int NOT NULL,
    queue      text NOT NULL,
    awaited_by bigint,             -- the worker whose loop waits for the report; null: parked, a report inserts a River job
    looked_at  timestamptz NOT NULL DEFAULT now(), -- claimed, pushed again, or seen in its queue
    process_id bigint,             -- the process that runs it
    started_at timestamptz,
    deadline   timestamptz,        -- of a started attempt: after this it has timed out
    failure    jsonb               -- reported, and not yet decided on by the finalizer
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX dispatches_of_task ON tasker.dispatches (task_id);

CREATE TABLE tasker.events (
    event_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id    bigint NOT NULL,
    step_id    bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempt    int,
    name       text NOT NULL,
    data       jsonb
);
COMMENT ON TABLE tasker.events IS 'One row per transition, written in its transaction; append-only';
CREATE INDEX events_of_task ON tasker.events (task_id, event_id);

CREATE TABLE tasker.workers (
    worker_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL,        -- host and process, for people
    client_id    text NOT NULL UNIQUE, -- of its River client: finds the jobs that it left running
    state        text NOT NULL DEFAULT 'alive' CHECK (state IN ('alive', 'stopped', 'dead')),
    lease        interval NOT NULL DEFAULT '4 s', -- silent for so long, it is dead
    details      jsonb NOT NULL DEFAULT '{}',
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE tasker.processes (
    process_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    identity     text NOT NULL,
    details      jsonb NOT NULL DEFAULT '{}',
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    stopped_at   timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE tasker.processes IS 'Sidekiq and other processes that run attempts, and their heartbeats';

-- The state machines. The pairs are those of states.go; a test holds the two
-- against each other.

CREATE FUNCTION tasker.task_may_become(was text, becomes text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT was || '>' || becomes = ANY ('{
        pending>in_progress,pending>error,pending>cancelled,
        in_progress>complete,in_progress>error,in_progress>cancelled,
        error>in_progress,error>resolved_manually,error>cancelled}'::text[])
$$;

CREATE FUNCTION tasker.step_may_become(was text, becomes text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT was || '>' || becomes = ANY ('{
        pending>enqueued,pending>in_progress,pending>cancelled,pending>skipped,pending>resolved_manually,
        enqueued>in_progress,enqueued>complete,enqueued>waiting_for_retry,enqueued>error,
        enqueued>cancelled,enqueued>skipped,enqueued>resolved_manually,
        in_progress>complete,in_progress>waiting_for_retry,in_progress>error,
        in_progress>cancelled,in_progress>skipped,in_progress>resolved_manually,
        waiting_for_retry>enqueued,waiting_for_retry>in_progress,
        waiting_for_retry>cancelled,waiting_for_retry>skipped,waiting_for_retry>resolved_manually,
        error>pending,error>cancelled,error>skipped,error>resolved_manually}'::text[])
$$;

CREATE FUNCTION tasker.refuse_transition() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % cannot go from % to %',
        CASE TG_TABLE_NAME WHEN 'tasks' THEN 'task' ELSE 'step' END,
        CASE TG_TABLE_NAME WHEN 'tasks' THEN to_jsonb(NEW) ->> 'task_id' ELSE to_jsonb(NEW) ->> 'step_id' END,
        OLD.state, NEW.state
    USING ERRCODE = 'TK006', HINT = 'docs/state_machine.md shows the transitions that exist';
END $$;

-- The condition is part of the trigger, not of its function: an allowed update
-- never enters PL/pgSQL.
CREATE TRIGGER refuse_transition BEFORE UPDATE ON tasker.tasks
    FOR EACH ROW WHEN (OLD.state <> NEW.state AND NOT tasker.task_may_become(OLD.state, NEW.state))
    EXECUTE FUNCTION tasker.refuse_transition();
CREATE TRIGGER refuse_transition BEFORE UPDATE ON tasker.steps
    FOR EACH ROW WHEN (OLD.state <> NEW.state AND NOT tasker.step_may_become(OLD.state, NEW.state))
    EXECUTE FUNCTION tasker.refuse_transition();
