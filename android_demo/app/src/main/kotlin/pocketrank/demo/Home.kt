package pocketrank.demo

import pocketrank.Bundle
import pocketrank.Engine
import pocketrank.FileStorage
import pocketrank.Ranker
import java.io.Closeable
import java.io.File

/**
 * What a user has on this phone, in a folder of theirs, open. Nothing of Android, so that the JVM runs its tests.
 *
 * The pack that the app came with is taken once: who forgot it, or was forgotten, never gets it again.
 *
 * @param shipped that pack; null where there is none. @param nowUs when it is opened, microseconds since 1970.
 */
class Home(
    folder: File,
    bundle: Bundle,
    engine: Engine,
    shipped: (() -> ByteArray)?,
    nowUs: Long = Ranker.nowUs(),
) : Closeable {
    private val storage = FileStorage(folder)
    val ranker: Ranker

    /** How long ago the demo's log ended, in microseconds: its users live on from there. */
    val lateUs: Long

    init {
        var begun: Ranker? = null
        try {
            ranker = Ranker(bundle, engine, storage).also { begun = it }
            val taken = File(folder, "shipped.taken") // which `forget` leaves
            if (shipped != null && !taken.exists()) {
                if (storage.pack == null && storage.events.isEmpty()) ranker.load(shipped(), "the app's own pack")
                taken.createNewFile()
            }
            lateUs = lateUs(nowUs)
        } catch (error: Throwable) {
            begun?.close()
            storage.close() // or the folder stays locked, and the next try fails of that
            throw error
        }
    }

    /** The app's clock is then an hour after the pack's last event, and never before an event of the phone's own. */
    private fun lateUs(nowUs: Long): Long {
        val throughUs = ranker.stats(nowUs).through?.timeUs
        val lateUs = if (throughUs == null) 0 else maxOf(nowUs - throughUs - HOUR_US, 0)
        val newestUs = storage.events.lastOrNull()?.timeUs ?: return lateUs
        return minOf(lateUs, nowUs - newestUs)
    }

    override fun close() {
        ranker.close()
        storage.close()
    }

    private companion object {
        const val HOUR_US = 3_600_000_000L
    }
}
