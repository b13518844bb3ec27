package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Travel lets time pass in a test database: all that is waited for comes nearer
// by d, as migrations/sql/0013_travel.up.sql explains. A *RefusedError: the
// database is not marked as one for tests, or d is below 0.
func (s *Store) Travel(ctx context.Context, d time.Duration) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.travel($1)`, d); err != nil {
		return fmt.Errorf("travel: %w", translate(err))
	}
	return nil
}

// MarkForTests marks the database as one that is for tests, so that Travel
// works. Only its owner may.
func (s *Store) MarkForTests(ctx context.Context) error {
	var name string
	if err := s.pool.QueryRow(ctx, `SELECT current_database()`).Scan(&name); err != nil {
		return fmt.Errorf("mark the database for tests: %w", translate(err))
	}
	if _, err := s.pool.Exec(ctx, `ALTER DATABASE `+pgx.Identifier{name}.Sanitize()+` SET tasker.testing = on`); err != nil {
		return fmt.Errorf("mark the database for tests: %w", translate(err))
	}
	return nil
}
