// Command told says when it runs, and writes a file when it is told to stop.
package main

import (
	"fmt"
	"os"

	"github.com/taskerhq/tasker/devstack"
)

func main() {
	ctx, stop := devstack.Told()
	defer stop()
	fmt.Println("runs")
	<-ctx.Done()
	if err := os.WriteFile(os.Args[1], nil, 0o600); err != nil {
		os.Exit(1)
	}
}
