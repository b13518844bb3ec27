-- Four roles that nobody logs in as: grant them to the users that apps, workers
-- and people have. Run again it changes nothing; after a migration it gives what
-- was added the same rights.
--
-- Apps, Sidekiq and operators call functions, which do their work with the rights
-- of the schema's owner; they write to no table themselves, except that an app
-- inserts tasks. Workers write to the tables; what makes and drops partitions is
-- the owner's, too. Nobody but the owner changes the schema.
DO $roles$
DECLARE
    name text;
    f    record;
    -- Deciding and showing: no harm in anybody's hands.
    pure text[] := '{step_may_become,task_may_become,gate_tokens,next_token,gate_rank,gate_is_for,river_state,river_job_state_in_bitmask,schema_problem,schema_problem_within,schema_refusal,
        schema_path,schema_shown,schema_word,failure_in_words,event_likes,check_channel,likes_are_safe,has_defaults,with_defaults,context_key,cursor_after,cursor_within,unread_since,
        step_ids,reports_of,old_tasks,old_events,ended_tasks,held_by,first_unread,events_beyond,still_writing,open_transactions,event_writers,steps_of,read_events,event_cursor_since,written_after,stats_bucket,failure_kind,stats_from,stats_since,figures,outcomes,histogram,slowest,failures,waiting_now,trend,totals,is_test_database,
        context_record,idempotency_key}';
    app text[] := '{enqueue_task,start_attempt,start_attempts,report_results,heartbeat,register_process,process_beat,process_stopped,
        publish_event,subscribe,unsubscribe,hold_subscriber,release_subscriber,handler_missing,next_events,acknowledge_events,event_failed,set_subscriber_owner,
        await_task,renew_waiters,fall_asleep}';
    operator text[] := '{cancel_task,pause_task,resume_task,retry_task,resolve_task,run_task_now,set_task_priority,retry_step,skip_step,resolve_step,
        set_limit,pause,resume,acknowledge_dead_letter,set_webhook,remove_webhook,retry_webhook,register_template,prune_tasks,prune_events,find_stale_tasks,sweep}';
    -- What a trigger calls, and what needs the owner: partitions are tables.
    of_owner text[] := '{prepare_task,expand_tasks,refuse_transition,refuse_priority,check_new_context,leave_gates,wake_admitted,ring,check_gate,make_event_days,close_event_days,make_fences}';
BEGIN
    FOREACH name IN ARRAY '{tasker_reader,tasker_app,tasker_operator,tasker_worker}'::text[] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN -- roles are the server's: another database has just got them
                NULL;
            END;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA tasker TO %I', name);
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA tasker TO %I', name);
        CONTINUE WHEN name = 'tasker_worker';
        -- What a process has to show is for the worker that gives it out, and for functions.
        FOR f IN SELECT c.table_name, string_agg(quote_ident(c.column_name), ', ' ORDER BY c.ordinal_position) AS columns
                 FROM information_schema.columns c
                 WHERE c.table_schema = 'tasker' AND c.table_name IN ('dispatches', 'processes') AND c.column_name NOT IN ('ticket', 'secret')
                 GROUP BY c.table_name
        LOOP
            EXECUTE format('REVOKE SELECT ON tasker.%I FROM %I', f.table_name, name);
            EXECUTE format('GRANT SELECT (%s) ON tasker.%I TO %I', f.columns, f.table_name, name);
        END LOOP;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = 'tasker_app'::regrole AND m.member = 'tasker_operator'::regrole) THEN
        GRANT tasker_app TO tasker_operator;
    END IF;

    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA tasker FROM PUBLIC;
    FOR f IN SELECT p.oid::regprocedure AS signature, p.proname AS name FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace AND p.prokind = 'f' LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO tasker_worker', f.signature);
        IF f.name = ANY (pure) THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO tasker_reader, tasker_app', f.signature);
        ELSIF f.name = ANY (app) THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO tasker_app', f.signature);
        ELSIF f.name = ANY (operator) THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO tasker_operator', f.signature);
        END IF;
        IF f.name = ANY (app || operator || of_owner) THEN
            EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER', f.signature);
        END IF;
    END LOOP;

    GRANT INSERT (namespace, name, version, context, priority, run_at, idempotency_key, correlation_id, tags, initiator, source_system, reason,
                  bypass_steps, deadline, parent_task_id, carrier) ON tasker.tasks TO tasker_app;
    GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tasker TO tasker_worker;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA tasker TO tasker_worker;
    REVOKE INSERT, UPDATE, DELETE ON tasker.schema_migrations, tasker.river_migration FROM tasker_worker;
    -- Days of events that are made later.
    ALTER DEFAULT PRIVILEGES IN SCHEMA tasker GRANT SELECT ON TABLES TO tasker_reader, tasker_app, tasker_operator, tasker_worker;
    ALTER DEFAULT PRIVILEGES IN SCHEMA tasker GRANT INSERT, UPDATE, DELETE ON TABLES TO tasker_worker;
END $roles$;
