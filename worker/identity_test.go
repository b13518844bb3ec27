package worker_test

import (
	"encoding/json"
	"testing"

	"github.com/taskerhq/tasker/store"
)

func TestTheSameContextIsTheSameTaskWhereTheTemplateSaysSo(t *testing.T) {
	b := setup(t)
	b.register(`{name: once, namespace_name: test, idempotency: context, step_templates: [{name: only, handler: tasker.echo}]}`)
	enqueue := func(context string, change ...func(*store.NewTask)) int64 {
		t.Helper()
		task := store.NewTask{Namespace: "test", Name: "once", Context: json.RawMessage(context)}
		for _, f := range change {
			f(&task)
		}
		id, err := b.store.Enqueue(t.Context(), &task)
		b.must(err)
		return id
	}
	first := enqueue(`{"invoice": 7, "lines": [1, 2]}`)
	if again := enqueue(`{ "lines":[1,2.0], "invoice":7 }`); again == first {
		t.Error("2 and 2.0 are two documents to Postgres, and so two tasks")
	}
	if again := enqueue(`{ "lines":[1,2], "invoice":7 }`); again != first {
		t.Errorf("the same document, written otherwise, is task %d and %d", first, again)
	}
	if other := enqueue(`{"invoice": 7, "lines": [1, 2]}`, func(n *store.NewTask) { n.IdempotencyKey = "again" }); other == first {
		t.Error("a key of its own makes it a task of its own")
	}
	_, err := b.store.Enqueue(t.Context(), &store.NewTask{Namespace: "test", Name: "once", Context: json.RawMessage(`{"invoice": 7, "lines": [1, 2]}`), RefuseDuplicate: true})
	if err == nil {
		t.Error("a duplicate was not refused")
	}
	if _, err := b.pool.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'once', '{"invoice": 7, "lines": [1, 2]}')`); err == nil {
		t.Error("a plain INSERT of a duplicate was not refused")
	}
	b.want("3", `SELECT count(*)::text FROM tasker.tasks`)
}

// Correlation and parent ids reach events, the Sidekiq job and the handler.
func TestIdsThatLinkATaskToOthersTravelWithIt(t *testing.T) {
	b := setup(t)
	b.register(`{name: child, namespace_name: test, step_templates: [{name: only, handler_class: Echo}]}`)
	b.start()
	parent := b.enqueue("child", `{}`)
	child, err := b.store.Enqueue(t.Context(), &store.NewTask{Namespace: "test", Name: "child", Context: json.RawMessage(`{}`), CorrelationID: "req-7", ParentTaskID: parent})
	b.must(err)
	b.until("both are queued", func() bool { return len(b.queued("default")) == 2 })
	found := false
	for _, payload := range b.queued("default") {
		var job struct {
			Args []struct {
				TaskID        int64   `json:"task_id"`
				CorrelationID *string `json:"correlation_id"`
			}
		}
		b.must(json.Unmarshal([]byte(payload), &job))
		if id := job.Args[0].CorrelationID; job.Args[0].TaskID == child && id != nil && *id == "req-7" {
			found = true
		} else if job.Args[0].TaskID == parent && id != nil {
			t.Errorf("a task without has the correlation id %q", *id)
		}
	}
	if !found {
		t.Errorf("no job has the correlation id: %s", b.queued("default"))
	}
	b.want("req-7 1", `SELECT (data ->> 'correlation_id') || ' ' || (data ->> 'parent_task_id') FROM tasker.events WHERE task_id = $1 AND name = 'task.initialize_requested'`, child)
	b.want("step.execution_requested", `SELECT name FROM tasker.event_log WHERE correlation_id = 'req-7' AND parent_task_id = $1 AND step = 'only'`, parent)
	step := b.dispatched(child, 1)
	b.want("req-7 1", `SELECT (a -> 'task' ->> 'correlation_id') || ' ' || (a -> 'task' ->> 'parent_task_id') FROM standin.start_attempt($1, 1) a`, step)
}
