package store_test

import (
	"strings"
	"testing"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestAURLThatIsWrittenForRailsIsUnderstood(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t) // it has a parameter already
	for _, more := range []string{
		"pool=10", "prepared_statements=false&pool=5&statement_timeout=5000", "keepalives=1&keepalives_idle=3&tcp_user_timeout=6000", "encoding=unicode&schema_search_path=public",
	} {
		for _, address := range []string{url + "&" + more, strings.Replace(url, "postgres:", "postgis:", 1) + "&" + more, strings.Replace(url, "?", "?"+more+"&", 1)} {
			pool, err := store.Open(t.Context(), address, "test", 1)
			if err != nil {
				t.Errorf("?%s: %v", more, err)
				continue
			}
			pool.Close()
		}
	}
	if _, err := store.Open(t.Context(), url+"&pooll=10", "test", 1); err == nil || !strings.Contains(err.Error(), `"pooll"`) {
		t.Errorf("a parameter that nothing knows: got %v", err)
	}
}
