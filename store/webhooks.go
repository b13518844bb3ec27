package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/safetext"
)

// Webhook is an address that events are posted to.
type Webhook struct {
	Name      string   `json:"name"`
	URL       string   `json:"url"`
	Patterns  []string `json:"patterns"`
	SecretEnv string   `json:"secret_env"` // the worker's environment variable that holds the secret
	Failures  int64    `json:"failures"`   // events that it did not take
}

// Subscriber is the name of the durable subscriber that reads for a webhook.
func (w *Webhook) Subscriber() string { return "webhook:" + w.Name }

// WebhookFailure is an event that a webhook did not take.
type WebhookFailure struct {
	Webhook  string          `json:"webhook"`
	EventID  int64           `json:"event_id"`
	Event    json.RawMessage `json:"event"` // as it was to be posted
	Tries    int             `json:"tries"`
	Failure  string          `json:"failure"` // of the last
	FailedAt time.Time       `json:"failed_at"`
	Again    bool            `json:"again"` // it is going to be tried again
}

// SetWebhook makes a webhook, or changes it; its place among the events stays.
func (s *Store) SetWebhook(ctx context.Context, w *Webhook, by string) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.set_webhook($1, $2, $3, $4, $5)`, w.Name, w.URL, w.Patterns, w.SecretEnv, text(by)); err != nil {
		return fmt.Errorf("set webhook %s: %w", w.Name, translate(err))
	}
	return nil
}

// RemoveWebhook drops a webhook and what it failed to deliver. ErrNotFound: there
// is none of this name.
func (s *Store) RemoveWebhook(ctx context.Context, name string) error {
	var there bool
	err := s.pool.QueryRow(ctx, `SELECT tasker.remove_webhook($1)`, name).Scan(&there)
	if err == nil && !there {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("webhook %s: %w", name, translate(err))
	}
	return nil
}

// RetryWebhook has events tried again that a webhook did not take: one, or, with 0,
// all. It returns how many.
func (s *Store) RetryWebhook(ctx context.Context, name string, event int64) (n int, err error) {
	var one *int64
	if event != 0 {
		one = &event
	}
	if err := s.pool.QueryRow(ctx, `SELECT tasker.retry_webhook($1, $2)`, name, one).Scan(&n); err != nil {
		return 0, fmt.Errorf("webhook %s: %w", name, translate(err))
	}
	return n, nil
}

// Webhooks lists them by name.
func (s *Store) Webhooks(ctx context.Context) ([]Webhook, error) {
	rows, err := s.pool.Query(ctx, `SELECT w.name, w.url, w.patterns, w.secret_env, (SELECT count(*) FROM tasker.webhook_failures f WHERE f.webhook = w.name)
		FROM tasker.webhooks w ORDER BY w.name`)
	return collect[Webhook](rows, err, "webhooks")
}

// WebhookFailed keeps an event that a webhook did not take. failure may be any text.
func (s *Store) WebhookFailed(ctx context.Context, name string, e *tasker.Event, tries int, failure string) error {
	doc, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("event %d: %w", e.ID, err)
	}
	if _, err := s.pool.Exec(ctx, `INSERT INTO tasker.webhook_failures AS f (webhook, event_id, event, tries, failure) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (webhook, event_id) DO UPDATE SET tries = f.tries + excluded.tries, failure = excluded.failure, failed_at = now(), again = false`,
		name, e.ID, doc, tries, safetext.MaskClean(failure, 1000)); err != nil {
		return fmt.Errorf("keep an event that webhook %s did not take: %w", name, translate(err))
	}
	return nil
}

// WebhookDelivered forgets a failure: the event was taken after all.
func (s *Store) WebhookDelivered(ctx context.Context, name string, event int64) error {
	if _, err := s.pool.Exec(ctx, `DELETE FROM tasker.webhook_failures WHERE webhook = $1 AND event_id = $2`, name, event); err != nil {
		return fmt.Errorf("webhook %s: %w", name, translate(err))
	}
	return nil
}

const failureColumns = `webhook, event_id, event, tries, failure, failed_at, again`

// WebhookFailures lists what webhooks did not take, the oldest events first; an
// empty name: of all of them.
func (s *Store) WebhookFailures(ctx context.Context, name string, most int) ([]WebhookFailure, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+failureColumns+` FROM tasker.webhook_failures WHERE $1 = '' OR webhook = $1 ORDER BY event_id, webhook LIMIT $2`, name, most)
	return collect[WebhookFailure](rows, err, "what webhooks did not take")
}

// TryAgain takes the next event that is to be tried again, nil if there is none.
func (s *Store) TryAgain(ctx context.Context, name string) (*WebhookFailure, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+failureColumns+` FROM tasker.webhook_failures WHERE webhook = $1 AND again ORDER BY event_id LIMIT 1`, name)
	if err != nil {
		return nil, fmt.Errorf("read what is to be tried again: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[WebhookFailure])
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}
