package migrations

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed roles.sql
var roles string

// RolesSQL is what Roles runs.
func RolesSQL() string { return roles }

// Roles creates the roles for apps, workers, operators and readers, where they
// are missing, and gives them their rights.
func Roles(ctx context.Context, pool *pgxpool.Pool) error {
	if err := Check(ctx, pool); err != nil {
		return err
	}
	return locked(ctx, pool, false, func(conn, _ *pgx.Conn) error { return grant(ctx, conn) })
}

func grant(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.PgConn().Exec(ctx, roles).ReadAll(); err != nil {
		return fmt.Errorf("give roles their rights: %w", err)
	}
	return nil
}

// hasRoles says that Roles has been here: then its statements belong to every migration.
func hasRoles(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var has bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'tasker_worker' AND has_schema_privilege(r.oid, 'tasker', 'USAGE'))`).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("look for roles: %w", err)
	}
	return has, nil
}
