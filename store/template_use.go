package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// TemplateUse says how many tasks are still to be finished by a version of a
// template.
type TemplateUse struct {
	Version   string `json:"version"`
	OpenTasks int64  `json:"open_tasks"`
}

// OpenTasksByVersion counts the unfinished tasks of each version of a template,
// the latest version first. Versions without any are left out.
func (s *Store) OpenTasksByVersion(ctx context.Context, namespace, name string) ([]TemplateUse, error) {
	rows, err := s.pool.Query(ctx, `SELECT version, count(*) FROM tasker.tasks
		WHERE namespace = $1 AND name = $2 AND state IN ('pending', 'in_progress')
		GROUP BY version ORDER BY string_to_array(version, '.')::int[] DESC`, namespace, name)
	if err != nil {
		return nil, fmt.Errorf("count tasks of %s/%s: %w", namespace, name, err)
	}
	uses, err := pgx.CollectRows(rows, pgx.RowToStructByPos[TemplateUse])
	if err != nil {
		return nil, fmt.Errorf("count tasks of %s/%s: %w", namespace, name, err)
	}
	return uses, nil
}
