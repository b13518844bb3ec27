package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/taskerhq/tasker"
)

// Registration says what registering a template did.
type Registration string

// What registering a template can do.
const (
	Registered Registration = "registered"
	Unchanged  Registration = "unchanged"
	Replaced   Registration = "replaced" // the same version, changed before any task used it
)

// RegisterTemplate puts a validated template in place. A *RefusedError: the
// version exists, has been used, and was different.
func (s *Store) RegisterTemplate(ctx context.Context, t *tasker.Template, checksum string) (Registration, error) {
	return registerTemplate(ctx, s.pool, t, checksum)
}

// TryTemplate says what RegisterTemplate would do, and does nothing.
func (s *Store) TryTemplate(ctx context.Context, t *tasker.Template, checksum string) (would Registration, err error) {
	tried := errors.New("tried")
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if would, err = registerTemplate(ctx, tx, t, checksum); err != nil {
			return err
		}
		return tried // and taken back
	})
	if errors.Is(err, tried) {
		err = nil
	}
	return would, err
}

func registerTemplate(ctx context.Context, in interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, t *tasker.Template, checksum string,
) (Registration, error) {
	definition, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("register template %s: %w", t.FullName(), err)
	}
	steps, err := json.Marshal(stepSpecs(t))
	if err != nil {
		return "", fmt.Errorf("register template %s: %w", t.FullName(), err)
	}
	var done Registration
	err = in.QueryRow(ctx, `SELECT tasker.register_template($1, $2, $3, $4, $5, $6, $7, $8)`,
		t.Namespace, t.Name, t.Version, text(t.Description), definition, checksum, t.MaxParallelSteps, steps).Scan(&done)
	if err != nil {
		return "", fmt.Errorf("register template %s: %w", t.FullName(), translate(err))
	}
	return done, nil
}

// stepSpec is a row of tasker.template_steps.
type stepSpec struct {
	Position       int             `json:"position"`
	Name           string          `json:"name"`
	HandlerClass   *string         `json:"handler_class"`
	Handler        *string         `json:"handler"`
	Queue          *string         `json:"queue"`
	DependsOn      []int           `json:"depends_on"`
	AttemptLimit   int             `json:"attempt_limit"`
	TimeoutSeconds *float64        `json:"timeout_seconds"`
	StartSeconds   *float64        `json:"schedule_to_start_seconds"`
	BeatSeconds    *float64        `json:"heartbeat_seconds"`
	LimitKey       *string         `json:"limit_key"`
	HandlerConfig  json.RawMessage `json:"handler_config,omitempty"`
	ResultSchema   json.RawMessage `json:"result_schema,omitempty"`
	Bypassable     bool            `json:"bypassable,omitempty"`
}

func stepSpecs(t *tasker.Template) []stepSpec {
	position := make(map[string]int, len(t.Steps))
	for i := range t.Steps {
		position[t.Steps[i].Name] = i
	}
	specs := make([]stepSpec, len(t.Steps))
	for i := range t.Steps {
		step := &t.Steps[i]
		depends := make([]int, len(step.DependsOn))
		for j, name := range step.DependsOn {
			depends[j] = position[name]
		}
		specs[i] = stepSpec{
			Position: i, Name: step.Name,
			HandlerClass: text(step.HandlerClass), Handler: text(step.Handler), Queue: text(step.Queue),
			DependsOn: depends, AttemptLimit: step.AttemptLimit(), LimitKey: text(step.LimitKey), HandlerConfig: step.HandlerConfig, ResultSchema: step.ResultSchema, Bypassable: step.Bypassable,
		}
		specs[i].TimeoutSeconds, specs[i].StartSeconds, specs[i].BeatSeconds = seconds(step.Timeout), seconds(step.StartTimeout), seconds(step.Heartbeat)
	}
	return specs
}

// seconds is s, or NULL for none.
func seconds(s tasker.Seconds) *float64 {
	if s == 0 {
		return nil
	}
	return new(float64(s))
}

// UseTemplate is Template for a worker that has a task of it: it notes that the template
// is used, so that it is not replaced any more.
func (s *Store) UseTemplate(ctx context.Context, id int64) (*tasker.Template, error) {
	if _, err := s.pool.Exec(ctx, `UPDATE tasker.task_templates SET used_at = now() WHERE template_id = $1 AND used_at IS NULL`, id); err != nil {
		return nil, fmt.Errorf("note that template %d is used: %w", id, err)
	}
	return s.Template(ctx, id)
}

// Template reads the template with this id, and refuses one whose definition,
// which loops go by, and steps, which SQL goes by, aren't the same graph: tasks
// would stand still for no reason that anybody sees.
func (s *Store) Template(ctx context.Context, id int64) (*tasker.Template, error) {
	t, err := s.template(ctx, fmt.Sprintf("template %d", id), `SELECT definition FROM tasker.task_templates WHERE template_id = $1`, id)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `SELECT name, depends_on FROM tasker.template_steps WHERE template_id = $1 ORDER BY position`, id)
	if err != nil {
		return nil, fmt.Errorf("read the steps of template %d: %w", id, err)
	}
	steps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct {
		Name      string
		DependsOn []int
	}])
	if err != nil {
		return nil, fmt.Errorf("read the steps of template %d: %w", id, err)
	}
	same := len(steps) == len(t.Steps)
	for i, spec := range stepSpecs(t) {
		same = same && steps[i].Name == spec.Name && slices.Equal(slices.Sorted(slices.Values(steps[i].DependsOn)), slices.Sorted(slices.Values(spec.DependsOn)))
	}
	if !same {
		return nil, fmt.Errorf("template %d (%s): its definition and its rows in tasker.template_steps don't have the same steps and dependencies; "+
			"register a new version of it with tasker template register", id, t.FullName())
	}
	return t, nil
}

// FindTemplate reads a template by name; an empty version means the latest.
func (s *Store) FindTemplate(ctx context.Context, namespace, name, version string) (*tasker.Template, error) {
	label := "template " + namespace + "/" + name
	if version != "" {
		label += "@" + version
	}
	return s.template(ctx, label, `SELECT definition FROM tasker.task_templates
		WHERE namespace = $1 AND name = $2 AND ($3 = '' OR version = $3) ORDER BY version_key DESC LIMIT 1`, namespace, name, version)
}

func (s *Store) template(ctx context.Context, label, sql string, args ...any) (*tasker.Template, error) {
	var definition json.RawMessage
	if err := s.pool.QueryRow(ctx, sql, args...).Scan(&definition); err != nil {
		return nil, fmt.Errorf("read %s: %w", label, translate(err))
	}
	var t tasker.Template
	if err := json.Unmarshal(definition, &t); err != nil {
		return nil, fmt.Errorf("read %s: %w", label, err)
	}
	return &t, nil
}

// TemplateSummary is a line of the list of templates.
type TemplateSummary struct {
	Namespace    string     `json:"namespace"`
	Name         string     `json:"name"`
	Version      string     `json:"version"`
	Description  string     `json:"description"`
	Steps        int        `json:"steps"`
	RegisteredAt time.Time  `json:"registered_at"`
	UsedAt       *time.Time `json:"used_at"` // null: no worker has had a task of it
}

// Templates lists all templates, the latest version of each name first.
func (s *Store) Templates(ctx context.Context) ([]TemplateSummary, error) {
	rows, err := s.pool.Query(ctx, `SELECT namespace, name, version, coalesce(description, ''),
			jsonb_array_length(definition -> 'step_templates'), registered_at, used_at
		FROM tasker.task_templates ORDER BY namespace, name, version_key DESC`)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[TemplateSummary])
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	return list, nil
}
