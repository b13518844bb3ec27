package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
)

func (a *app) webhookCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use: "webhook", Short: "Post events to HTTP addresses, signed and in order",
		Long: `Workers that may call the host (http.allow) and have the secret, in the environment
variable that the webhook names, post its events one after the other. An event that
is not answered by 2xx is tried again for about ten minutes, then it is kept, and
the next ones go on.`,
	})
	c.AddCommand(a.webhookSetCommand(), a.webhookListCommand(),
		&cobra.Command{
			Use: "remove NAME", Short: "Remove a webhook, its place among the events, and what it did not take", Args: argsExactly(1),
			RunE: func(c *cobra.Command, args []string) error {
				return a.withStore(c.Context(), func(s *store.Store) error {
					if err := s.RemoveWebhook(c.Context(), args[0]); err != nil {
						return err
					}
					fprintf(a.stdout, "webhook %s is removed\n", args[0])
					return nil
				})
			},
		}, a.webhookFailuresCommand(), a.webhookRetryCommand())
	return c
}

func (a *app) webhookSetCommand() *cobra.Command {
	var w store.Webhook
	var by string
	command := &cobra.Command{
		Use: "set NAME URL [PATTERN]…", Short: "Make a webhook, or change it; its place among the events stays",
		Example: "  tasker webhook set shop https://shop.example/tasker 'task.*' order.fulfilled --secret-env SHOP_WEBHOOK_SECRET",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return &usageError{errors.New("a webhook has a NAME and a URL")}
			}
			if w.SecretEnv == "" {
				return &usageError{errors.New("say --secret-env NAME: which environment variable of the workers holds the secret that requests are signed with")}
			}
			w.Name, w.URL, w.Patterns = args[0], args[1], args[2:]
			if len(w.Patterns) == 0 {
				w.Patterns = []string{"*"}
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				if err := s.SetWebhook(c.Context(), &w, by); err != nil {
					return err
				}
				fprintf(a.stdout, "webhook %s posts %s to %s, from now on\n", w.Name, strings.Join(w.Patterns, " "), safetext.MaskAddress(w.URL))
				return nil
			})
		},
	}
	command.Flags().StringVar(&w.SecretEnv, "secret-env", "", "environment variable of the workers that holds the secret")
	command.Flags().StringVar(&by, "by", os.Getenv("USER"), "who does it")
	return command
}

func (a *app) webhookListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List webhooks, how far behind each is, and how many events it did not take", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(c.Context(), func(s *store.Store) error {
				hooks, err := s.Webhooks(c.Context())
				if err != nil {
					return err
				}
				lags, err := s.EventLags(c.Context())
				if err != nil {
					return err
				}
				for i := range hooks {
					hooks[i].URL = safetext.MaskAddress(hooks[i].URL)
				}
				if a.output == "json" {
					return a.printJSON(hooks)
				}
				behind := map[string]store.EventLag{}
				for _, l := range lags {
					behind[l.Name] = l
				}
				t := table{}
				t.add("name", "url", "patterns", "secret in", "behind", "posted by", "not taken", "stands at")
				for _, w := range hooks {
					l := behind[w.Subscriber()]
					by, at := "nobody", ""
					if l.Holder != nil {
						by = *l.Holder
					}
					if l.FailedEventID != nil {
						at = fmt.Sprintf("event %d: %s", *l.FailedEventID, shortened(*l.Failure, 60))
					}
					t.add(w.Name, w.URL, strings.Join(w.Patterns, " "), w.SecretEnv, strconv.FormatInt(l.Behind, 10), by, count(w.Failures), at)
				}
				t.print(a.stdout)
				return nil
			})
		},
	}
}

func (a *app) webhookFailuresCommand() *cobra.Command {
	return &cobra.Command{
		Use: "failures [NAME]", Short: "List events that a webhook, or any, did not take", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				failures, err := s.WebhookFailures(c.Context(), name, 1000)
				if err != nil || a.output == "json" {
					return a.jsonOr(failures, err)
				}
				t := table{}
				t.add("webhook", "event", "tries", "last", "why", "again")
				for _, f := range failures {
					again := ""
					if f.Again {
						again = "yes"
					}
					t.add(f.Webhook, strconv.FormatInt(f.EventID, 10), strconv.Itoa(f.Tries), f.FailedAt.Local().Format(time.DateTime), shortened(f.Failure, 80), again)
				}
				t.print(a.stdout)
				return nil
			})
		},
	}
}

func (a *app) webhookRetryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "retry NAME [EVENT]", Short: "Have what a webhook did not take posted again: one event, or all", Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			var event int64
			if len(args) == 2 {
				var err error
				if event, err = parseID(args[1], "event"); err != nil {
					return err
				}
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				n, err := s.RetryWebhook(c.Context(), args[0], event)
				if err != nil {
					return err
				}
				if n == 0 {
					return fmt.Errorf("webhook %s has nothing of the kind that it did not take: see tasker webhook failures", args[0])
				}
				fprintf(a.stdout, "%d events are posted again\n", n)
				return nil
			})
		},
	}
}
