# frozen_string_literal: true

# Written for ActiveJob, not for tasker.
class InvoiceJob < ActiveJob::Base
  retry_on IOError, wait: 11, attempts: 9

  def perform(order_id, fail: false)
    raise IOError, "printer is busy" if fail

    { invoice: order_id, locale: Current.locale, executions: }
  end
end
